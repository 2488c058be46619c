-- forget: removes a worker's row, unless it lives. ARGV: worker
local row = read_row(ARGV[1])
if not row or row.live == '1' then
  return 0
end
redis.call('DEL', key('worker:', ARGV[1]))
redis.call('SREM', key('workers'), ARGV[1])
return 1
