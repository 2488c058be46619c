-- cancel: sets the cancel field of the run's claim, whatever its state. ARGV: run id
local claim = read_claim(ARGV[1])
if not claim then
  return refused('unknown')
end
if claim.v ~= VERSION then
  return refused('version', claim)
end
if claim.cancel ~= '1' then
  claim.cancel = '1'
  redis.call('HSET', key('claim:', claim.run_id), 'cancel', '1')
end
hint('cancel', claim.run_id)
return moved(claim)
