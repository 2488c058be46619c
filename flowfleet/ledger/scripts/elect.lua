-- elect: takes the lead when the leader is still as seen. ARGV: name, host, nonce, term seen, beat seen (empty: nobody leads), gap,
-- renew, ttl, grace, a new ledger id, the ids that the candidate remembers (joined by commas, its ledger's own first).
-- The numbers come with the lead: what a worker starts before the first beat counts by them too.
local name, host, nonce, seen_term, seen_beat, gap = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local leader = read_hash(key('leader')) or {}
local leads = leader.nonce and leader.nonce ~= ''
if leads and leader.nonce == nonce then
  return leader.term
end
if leads and not (leader.term == seen_term and leader.beat == seen_beat) then
  return ''
end
if not leads and seen_term ~= '' then
  -- the one that was seen has resigned: nobody has to be waited for
  seen_term = ''
end
-- A gap of chance: two leaders around a loss of the last writes of Redis must not share a term.
local term = string.format('%d', (tonumber(leader.term) or 0) + 1 + gap)
redis.call('HSET', key('leader'), 'name', name, 'host', host, 'nonce', nonce, 'term', term, 'beat', '0')
redis.call('HSET', key('lease'), 'renew_seconds', ARGV[7], 'ttl_seconds', ARGV[8], 'grace_seconds', ARGV[9])
redis.call('HDEL', key('standbys'), nonce)
-- An emptied Redis gets its id back from whoever remembers it; where nobody does it is another ledger than any before.
if redis.call('EXISTS', key('ledger')) == 0 then
  local id = string.match(ARGV[11], '^[^,]+') or ARGV[10]
  redis.call('SET', key('ledger'), id)
  keep_ledgers(id .. ',' .. table.concat(ledgers(), ','))
end
remember(ARGV[11])
return term
