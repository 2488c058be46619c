-- run: starting -> running. ARGV: run id, claim id, worker, handle
local run_id, claim_id, worker, handle = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local claim, answer = find_own('run', run_id, claim_id, worker)
if not claim then
  return answer
end
if claim.state == 'running' then
  return moved(claim)
end
if not from_source('run', claim) then
  return refused('state', claim)
end
write_claim(claim, {state = 'running', handle = handle})
return moved(claim)
