-- release: ended -> gone. ARGV: run id, claim id, worker, outcome
local run_id, claim_id, worker, outcome = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local claim, answer = find_own('release', run_id, claim_id, worker)
if not claim then
  return answer
end
if not from_source('release', claim) then
  return refused('state', claim)
end
claim.outcome = outcome
count_attempts(claim, outcome == 'again')
remove_claim(claim, 'release', worker, outcome)
return moved(claim)
