-- prove: the word of its host that no process of a claim lives. ARGV: run id, claim id, worker, nonce, why
-- A tombstone goes; a claim that is missing or judged keeps the word, so that the leader judges and buries it without waiting.
-- Like `adopt`, any worker of the host may say so that holds, or has held since, the lock of the owner's state folder.
local run_id, claim_id, worker, nonce, why = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local tomb = read_tomb(run_id)
local entombed = tomb and tomb.claim == claim_id
local claim, answer
if not entombed then
  claim, answer = find('prove', run_id, claim_id)
  if not claim then
    return answer
  end
end
if not has_name(worker, nonce) or not of_host((claim or tomb).worker, worker) then
  return refused('owner', claim)
end
if entombed then
  redis.call('HDEL', key('tombs'), run_id)
  hint('freed', run_id)
  return moved()
end
if not from_source('prove', claim) then
  return refused('state', claim)
end
if (claim.proof or '') == '' then
  claim.proof = why
  redis.call('HSET', key('claim:', run_id), 'proof', why)
  hint('proved', run_id)
end
return moved(claim)
