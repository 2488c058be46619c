-- resign: leaves the lead; the term stays, so that the next one is higher. ARGV: term, then nonces of pollers that stand by
-- With nonces: only while one of them stands by. Of a leader and a standby that end at once, one finds the other gone.
if #ARGV > 1 then
  local there = 0
  for i = 2, #ARGV do
    there = there + redis.call('HEXISTS', key('standbys'), ARGV[i])
  end
  if there == 0 then
    return 0
  end
end
if term_stands(ARGV[1]) then
  redis.call('HSET', key('leader'), 'nonce', '', 'name', '', 'host', '')
  hint('poke')
end
return 1
