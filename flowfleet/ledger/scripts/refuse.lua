-- refuse: claiming -> gone. ARGV: term, run id, claim id, reason
local term, run_id, claim_id, reason = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not term_stands(term) then
  return refused('term', read_claim(run_id))
end
local claim, answer = find('refuse', run_id, claim_id)
if not claim then
  return answer
end
if not from_source('refuse', claim) then
  return refused('state', claim)
end
remove_claim(claim, 'refuse', 'leader', reason)
count('refused')
hint('freed', run_id)
return moved(claim)
