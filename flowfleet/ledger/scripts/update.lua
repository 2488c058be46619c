-- update: what a worker serves and has changed. ARGV: worker, nonce, then names and values
local worker, nonce = ARGV[1], ARGV[2]
if not has_name(worker, nonce) then
  return 0
end
local fields = {}
for i = 3, #ARGV do
  fields[#fields + 1] = ARGV[i]
end
redis.call('HSET', key('worker:', worker), unpack(fields))
hint('freed', worker)
return 1
