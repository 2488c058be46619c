-- want: the operator's word. ARGV: worker, wanted, note
local worker, wanted, note = ARGV[1], ARGV[2], ARGV[3]
if redis.call('EXISTS', key('worker:', worker)) == 0 then
  return 0
end
redis.call('HSET', key('worker:', worker), 'wanted', wanted, 'note', note)
hint('wanted', worker)
return 1
