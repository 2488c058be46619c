-- unlearn: takes away routes that exist no more, but for those that a claim is on. ARGV: routes
local claimed = {}
for _, run_id in ipairs(redis.call('SMEMBERS', key('claims'))) do
  local route = redis.call('HGET', key('claim:', run_id), 'route')
  if route then
    claimed[route] = true
  end
end
local gone = 0
for i = 1, #ARGV do
  if not claimed[ARGV[i]] then
    gone = gone + redis.call('SREM', key('routes'), ARGV[i])
  end
end
if gone > 0 then
  hint('routes')
end
return gone
