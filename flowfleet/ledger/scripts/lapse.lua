-- lapse: a worker's beat has not moved for a TTL of the leader's clock. ARGV: term, worker, beat
local term, worker, beat = ARGV[1], ARGV[2], ARGV[3]
local row = term_stands(term) and read_row(worker)
-- one that has signed off since the leader looked has stopped, and is not lost
if not row or row.beat ~= beat or row.live ~= '1' then
  return 0
end
redis.call('HSET', key('worker:', worker), 'live', '0', 'gone', 'lost')
return 1
