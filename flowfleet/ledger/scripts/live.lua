-- live: all claims
local claims = {}
for _, run_id in ipairs(redis.call('SMEMBERS', key('claims'))) do
  local flat = redis.call('HGETALL', key('claim:', run_id))
  if #flat > 0 then
    claims[#claims + 1] = flat
  end
end
return claims
