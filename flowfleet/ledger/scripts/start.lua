-- start: taken -> starting, before the fork. ARGV: run id, claim id, worker, nonce
-- The same nonce may ask again when its first question was not answered, and only then has not forked; any other process of
-- this worker finds `starting` under another nonce and must look at the host first.
local run_id, claim_id, worker, nonce = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local claim, answer = find_own('start', run_id, claim_id, worker)
if not claim then
  return answer
end
if not has_name(worker, nonce) then
  return refused('owner', claim)
end
local again = claim.state == 'starting' and claim.nonce == nonce
if not again and not from_source('start', claim) then
  return refused('state', claim)
end
if not gate_open() then
  return refused('gate', claim)
end
if claim.cancel == '1' then
  return refused('cancelled', claim)
end
if not again then
  write_claim(claim, {state = 'starting', nonce = nonce})
end
return moved(claim)
