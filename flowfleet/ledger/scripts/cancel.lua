-- cancel: somebody wants the run cancelled, whatever the state of its claim. ARGV: run id, claim id ('' = whichever stands), how, why
-- What was asked for with more weight stays, and so does who asked first. The hint goes out only when something has changed, so
-- that a leader which says the same at each of its looks wakes nobody.
local run_id, claim_id, how, why = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local claim = read_claim(run_id)
if not claim then
  return refused('unknown')
end
if claim_id ~= '' and claim.claim ~= claim_id then
  return refused('other-claim', claim)
end
if claim.v ~= VERSION then
  return refused('version', claim)
end
if tonumber(how) > tonumber(claim.cancel or '0') then
  claim.cancel, claim.cancel_why = how, why
  redis.call('HSET', key('claim:', run_id), 'cancel', how, 'cancel_why', why)
  hint('cancel', run_id)
end
return moved(claim)
