-- adopt: the claim is another worker's of the same host from now on, its state stays. ARGV: run id, claim id, worker, nonce
-- That the owner is dead cannot be seen from here: whoever asks has held the lock of the owner's state folder.

-- A host may have got another name: then it is the same one by machine and boot. With another boot it may be a copy of that machine,
-- whose original lives. A claim that was only taken, or that a renewal wrote first after a loss of Redis, names no machine; the
-- owner's row does.
local function same_host(claim, worker)
  if of_host(claim.worker, worker) then
    return true
  end
  local before, row = (claim.machine or '') ~= '' and claim or read_row(claim.worker) or {}, read_row(worker)
  for _, name in ipairs({'machine', 'boot_id'}) do
    if (before[name] or '') == '' or before[name] ~= row[name] then
      return false
    end
  end
  return true
end

local run_id, claim_id, worker, nonce = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local claim, answer = find('adopt', run_id, claim_id)
if not claim then
  return answer
end
if not has_name(worker, nonce) then
  return refused('owner', claim)
end
if forgotten(claim_id) then
  return refused('forgotten', claim)
end
if claim.state == 'missing' then
  claim.state = claim.was
end
if not from_source('adopt', claim) then
  return refused('state', claim)
end
if claim.worker == worker then
  return moved(claim)
end
if not same_host(claim, worker) then
  return refused('owner', claim)
end
-- The nonce goes: the dead owner's process asks no start for it again. Not freshened, like the leader's moves: only the next
-- renewal says how far the run is by the host's disk.
write_claim(claim, {state = claim.state, worker = worker, nonce = ''}, true)
return moved(claim)
