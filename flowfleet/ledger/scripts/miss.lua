-- miss: starting, running -> missing. ARGV: term, run id, claim id, moves as the leader saw them (empty: whatever they are)
local term, run_id, claim_id, moves = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not term_stands(term) then
  return refused('term', read_claim(run_id))
end
local claim, answer = find('miss', run_id, claim_id)
if not claim then
  return answer
end
if claim.state == 'missing' then
  return moved(claim)
end
-- a renewal that came since the leader looked wins
if not from_source('miss', claim) or (moves ~= '' and claim.moves ~= moves) then
  return refused('state', claim)
end
-- While the gate is shut, nobody could have been heard of.
if not gate_open() then
  return refused('gate', claim)
end
write_claim(claim, {state = 'missing', was = claim.state, missed_at = now()}, true)
return moved(claim)
