-- give back: queued, taken (or, with proof, starting) -> returning. ARGV: run id, claim id, reason, term, worker, proof
-- Exactly one of term and worker is given.
local run_id, claim_id, reason, term, worker, proof = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local by_leader = term ~= ''
local move = by_leader and 'give back (leader)' or (proof == '1' and 'give back (with proof)' or 'give back (worker)')
if by_leader and not term_stands(term) then
  return refused('term', read_claim(run_id))
end
local claim, answer
if by_leader then
  claim, answer = find(move, run_id, claim_id)
else
  claim, answer = find_own(move, run_id, claim_id, worker)
end
if not claim then
  return answer
end
if claim.state == 'returning' and (by_leader or claim.by == worker) then
  return moved(claim)
end
if not from_source(move, claim) then
  return refused('state', claim)
end
-- While the gate is shut, what stands here may be behind what its worker has done: only the worker itself knows better.
if by_leader and not gate_open() then
  return refused('gate', claim)
end
if not by_leader and claim.state == 'queued' and (not gate_open() or claim.process ~= process()) then
  return refused('gate', claim)
end
if claim.state == 'queued' then
  take_off_queue(claim)
end
local by = by_leader and 'leader' or worker
write_claim(claim, {state = 'returning', by = by, reason = reason, never_began = proof}, by_leader)
return moved(claim)
