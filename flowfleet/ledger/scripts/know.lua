-- know: adds routes. ARGV: routes
local new = 0
for i = 1, #ARGV do
  new = new + redis.call('SADD', key('routes'), ARGV[i])
end
if new > 0 then
  hint('routes')
end
return new
