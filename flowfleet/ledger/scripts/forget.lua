-- forget: removes a worker's row, and gives up what it has started. ARGV: worker, nonce seen, beat seen (both empty: none)
-- Refused while it lives, unless its beat is still the one that was seen: the caller has watched it. The answer: {1, run ids} or {0}.
-- After a loss of Redis there may be no row any more: then only what nobody has been heard of is given up, such as a restored claim.
local worker, nonce, beat = ARGV[1], ARGV[2], ARGV[3]
local row = read_row(worker)
if row and row.live == '1' and not (row.nonce == nonce and row.beat == beat) then
  return {0, {}}
end
local given_up = {}
local function give_up(run_id, claim_id)
  redis.call('ZADD', key('forgotten'), now(), claim_id)
  given_up[#given_up + 1] = run_id
end
for _, run_id in ipairs(redis.call('SMEMBERS', key('claims'))) do
  local claim = read_claim(run_id)
  local silent = claim and (claim.state == 'missing' or claim.state == 'judged')
  if claim and claim.v == VERSION and claim.worker == worker and from_source('forget', claim) and (row or silent) then
    give_up(run_id, claim.claim)
    -- the operator's word is the proof; the leader tells the API
    redis.call('HSET', key('claim:', run_id), 'proof', 'forgotten')
  end
end
for _, text in ipairs(redis.call('HVALS', key('tombs'))) do
  local tomb = cjson.decode(text)
  if tomb.worker == worker then
    give_up(tomb.run_id, tomb.claim)
    redis.call('HDEL', key('tombs'), tomb.run_id)
  end
end
if not row and #given_up == 0 then
  return {0, {}}
end
redis.call('ZREMRANGEBYRANK', key('forgotten'), 0, -KEPT_RECORDS - 1)
redis.call('DEL', key('worker:', worker))
redis.call('SREM', key('workers'), worker)
hint('proved', worker)
return {1, given_up}
