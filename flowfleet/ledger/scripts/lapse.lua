-- lapse: a worker's beat has not moved for a TTL of the leader's clock. ARGV: term, worker, beat
local term, worker, beat = ARGV[1], ARGV[2], ARGV[3]
if not term_stands(term) or redis.call('HGET', key('worker:', worker), 'beat') ~= beat then
  return 0
end
redis.call('HSET', key('worker:', worker), 'live', '0')
return 1
