-- drop: returning -> gone. ARGV: run id, claim id, term, worker (exactly one of term and worker is given)
local run_id, claim_id, term, worker = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local by_leader = term ~= ''
local move = by_leader and 'drop (leader)' or 'drop (worker)'
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
if not from_source(move, claim) then
  return refused('state', claim)
end
if not by_leader and claim.by ~= worker then
  return refused('owner', claim)
end
-- the record names who gave it back: what a worker itself has given up never comes back, whoever finished it (see renew)
remove_claim(claim, move, claim.by, claim.reason)
count('handed_back')
hint('freed', run_id)
return moved(claim)
