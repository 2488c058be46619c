-- bury: judged -> gone. ARGV: term, run id, claim id, outcome, again (1: the run is Scheduled at the API once more)
-- Without a proof that its process has ended a tombstone is left, which no new claim of the run passes.
local term, run_id, claim_id, outcome, again = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if not term_stands(term) then
  return refused('term', read_claim(run_id))
end
local claim, answer = find('bury', run_id, claim_id)
if not claim then
  return answer
end
if not from_source('bury', claim) then
  return refused('state', claim)
end
if (claim.proof or '') == '' then
  local tomb = {buried_at = now(), process = process()}
  for _, name in ipairs({'run_id', 'claim', 'route', 'name', 'worker', 'attempt', 'policy', 'boot_id', 'machine', 'missed_at'}) do
    tomb[name] = claim[name] or ''
  end
  redis.call('HSET', key('tombs'), run_id, cjson.encode(tomb))
end
claim.outcome = outcome
count_attempts(claim, again == '1')
remove_claim(claim, 'bury', 'leader', claim.reason)
count('lost')
hint('freed', run_id)
return moved(claim)
