-- start: taken -> starting, before the fork. ARGV: run id, claim id, worker, nonce, policy, switch, ttl, flow, deployment
-- The policy is what the run itself asks for if it is lost (empty: what the poller was told); its attempts are counted all the same.
-- The switch is 1 where the run ends by itself when its lease runs out, the ttl is the lease that the worker has heard.
-- The same nonce may ask again when its first question was not answered, and only then has not forked; any other process of
-- this worker finds `starting` under another nonce and must look at the host first.
local run_id, claim_id, worker, nonce, policy, switch, ttl, flow, deployment = unpack(ARGV)
local claim, answer = find_own('start', run_id, claim_id, worker)
if not claim then
  return answer
end
if not has_name(worker, nonce) then
  return refused('owner', claim)
end
local again = claim.state == 'starting' and claim.nonce == nonce
if not again and not from_source('start', claim) then
  return refused('state', claim)
end
if not gate_open() then
  return refused('gate', claim)
end
if claim.cancel ~= '0' then
  return refused('cancelled', claim)
end
if not again then
  if policy == '' then
    policy = claim.policy
  elseif policy == 'requeue' and tonumber(claim.attempt) > (tonumber(claim.most) or 0) then
    policy = 'report'
  end
  local row = read_row(worker)
  write_claim(claim, {
    state = 'starting', nonce = nonce, policy = policy, switch = switch, ttl = longest_ttl(ttl),
    boot_id = row.boot_id or '', machine = row.machine or '', flow = flow, deployment = deployment, began_at = now(),
  })
end
return moved(claim)
