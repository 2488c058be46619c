-- judge: missing -> judged. ARGV: term, run id, claim id, moves as the leader saw them (empty: whatever they are), proof, reason
-- The proof says why no process of the claim can live (empty: none, it was only not heard of); the host's own word is kept.
local term, run_id, claim_id, moves, proof, reason = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
if not term_stands(term) then
  return refused('term', read_claim(run_id))
end
local claim, answer = find('judge', run_id, claim_id)
if not claim then
  return answer
end
if claim.state == 'judged' then
  return moved(claim)
end
if not from_source('judge', claim) or (moves ~= '' and claim.moves ~= moves) then
  return refused('state', claim)
end
if not gate_open() then
  return refused('gate', claim)
end
if (claim.proof or '') ~= '' then
  proof = claim.proof
end
write_claim(claim, {state = 'judged', proof = proof, reason = reason}, true)
return moved(claim)
