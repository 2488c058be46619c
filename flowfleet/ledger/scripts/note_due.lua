-- note due: replaces what is due per route. ARGV: term, then routes and their JSON
if not term_stands(ARGV[1]) then
  return 0
end
redis.call('DEL', key('due'))
redis.call('SET', key('due_at'), now())
for i = 2, #ARGV, 2 do
  redis.call('HSET', key('due'), ARGV[i], ARGV[i + 1])
end
return 1
