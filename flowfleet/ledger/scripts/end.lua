-- end: starting or running -> ended. ARGV: run id, claim id, worker, exit
local run_id, claim_id, worker, exit = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local claim, answer = find_own('end', run_id, claim_id, worker)
if not claim then
  return answer
end
if claim.state == 'ended' then
  return moved(claim)
end
if not from_source('end', claim) then
  return refused('state', claim)
end
write_claim(claim, {state = 'ended', exit = exit})
hint('freed', run_id)
return moved(claim)
