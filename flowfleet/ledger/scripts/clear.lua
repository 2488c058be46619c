-- clear: the leader takes a tombstone away, since its process cannot live any more. ARGV: term, run id, claim id
local term, run_id, claim_id = ARGV[1], ARGV[2], ARGV[3]
local claim = read_claim(run_id)
if not term_stands(term) then
  return refused('term', claim)
end
local tomb = read_tomb(run_id)
if not tomb then
  return refused('unknown', claim)
elseif tomb.claim ~= claim_id then
  return refused('other-claim', claim)
end
redis.call('HDEL', key('tombs'), run_id)
hint('freed', run_id)
return moved()
