-- cancel: somebody wants the run cancelled, whatever the state of its claim. ARGV: run id, claim id ('' = whichever stands), how, why,
-- whether that was found at the API ('1') or is the word of who asks ('')
-- What was asked for with more weight stays, and so does who asked first; only what was found gives way to a word. The hint goes
-- out only when something has changed, so that a leader which says the same at each of its looks wakes nobody.
local run_id, claim_id, how, why, found = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
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
local weightier = tonumber(how) > tonumber(claim.cancel or '0')
if weightier or (how == claim.cancel and claim.cancel_found == '1' and found == '') then
  claim.cancel, claim.cancel_why = how, why
  redis.call('HSET', key('claim:', run_id), 'cancel', how, 'cancel_why', why, 'cancel_found', found)
  hint('cancel', run_id)
end
return moved(claim)
