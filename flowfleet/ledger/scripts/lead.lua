-- lead: the leader's beat and numbers. ARGV: term, nonce, renew, ttl, grace
if not term_stands(ARGV[1]) or redis.call('HGET', key('leader'), 'nonce') ~= ARGV[2] then
  return 0
end
redis.call('HINCRBY', key('leader'), 'beat', 1)
redis.call('HSET', key('lease'), 'renew_seconds', ARGV[3], 'ttl_seconds', ARGV[4], 'grace_seconds', ARGV[5])
return 1
