-- sign off: the worker ends in order. ARGV: worker, nonce
if has_name(ARGV[1], ARGV[2]) then
  redis.call('HSET', key('worker:', ARGV[1]), 'live', '0', 'gone', 'stopped', 'seen', now())
end
return 1
