-- take: queued -> taken. ARGV: run id, claim id, worker, nonce
local run_id, claim_id, worker, nonce = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local claim, answer = find_own('take', run_id, claim_id, worker)
if not claim then
  return answer
end
if not has_name(worker, nonce) then
  return refused('owner', claim)
end
if claim.state == 'taken' and claim.worker == worker and claim.nonce == nonce then
  return moved(claim)
end
if not from_source('take', claim) then
  return refused('state', claim)
end
-- Queued under an earlier server process: perhaps Redis has lost that it was taken and started. Not by this message again:
-- the leader hands it back, and there the API tells whether it has started.
if not gate_open() or claim.process ~= process() then
  return refused('gate', claim)
end
write_claim(claim, {state = 'taken', worker = worker, nonce = nonce})
return moved(claim)
