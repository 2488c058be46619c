-- rows: all workers
local rows = {}
for _, worker in ipairs(redis.call('SMEMBERS', key('workers'))) do
  local flat = redis.call('HGETALL', key('worker:', worker))
  if #flat > 0 then
    rows[#rows + 1] = flat
  end
end
return rows
