-- inherit: ended -> gone, by the leader. ARGV: term, run id, claim id, moves as the leader saw them (empty: whatever they are), outcome
local term, run_id, claim_id, moves, outcome = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if not term_stands(term) then
  return refused('term', read_claim(run_id))
end
local claim, answer = find('inherit', run_id, claim_id)
if not claim then
  return answer
end
if not from_source('inherit', claim) or (moves ~= '' and claim.moves ~= moves) then
  return refused('state', claim)
end
claim.outcome = outcome
count_attempts(claim, outcome == 'again')
remove_claim(claim, 'inherit', 'leader', outcome)
return moved(claim)
