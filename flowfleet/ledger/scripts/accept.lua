-- accept: claiming -> queued. ARGV: term, run id, claim id
local term, run_id, claim_id = ARGV[1], ARGV[2], ARGV[3]
if not term_stands(term) then
  return refused('term', read_claim(run_id))
end
local claim, answer = find('accept', run_id, claim_id)
if not claim then
  return answer
end
if claim.state == 'queued' then
  return moved(claim)
end
if not from_source('accept', claim) then
  return refused('state', claim)
end
write_claim(claim, {state = 'queued'}, true)
return moved(claim)
