-- linger: notes on the claim that the API shows an end of its run while its process lives. ARGV: run id, claim id, worker, state
-- An empty state takes the note away: the run goes on at the API.
local run_id, claim_id, worker, state = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local claim = read_claim(run_id)
if not claim then
  return refused('unknown')
elseif claim.claim ~= claim_id then
  return refused('other-claim', claim)
elseif claim.v ~= VERSION then
  return refused('version', claim)
elseif claim.worker ~= worker then
  return refused('owner', claim)
end
if state == '' then
  redis.call('HDEL', key('claim:', run_id), 'lingers', 'lingers_since')
  claim.lingers = nil
  claim.lingers_since = nil
elseif claim.lingers ~= state then
  claim.lingers = state
  claim.lingers_since = now()
  redis.call('HSET', key('claim:', run_id), 'lingers', state, 'lingers_since', claim.lingers_since)
end
return moved(claim)
