-- records: claims that are gone, newest first. ARGV: limit
local limit = tonumber(ARGV[1])
if limit < 1 then
  return {}
end
local ids = redis.call('ZREVRANGE', key('gone'), 0, math.min(limit, KEPT_RECORDS) - 1)
local records = {}
for _, id in ipairs(ids) do
  local text = redis.call('HGET', key('records'), id)
  if text then
    records[#records + 1] = text
  end
end
return records
