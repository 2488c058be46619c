-- renew: one renewal for all claims that a worker holds; writes again what Redis has lost of them.
-- ARGV: worker, nonce, beat, number of held, then per held: run id, claim id, call, route, name, due, state, attempt, policy,
-- handle, exit, switch, flow, deployment, ttl (the lease that the worker has heard; 0: another process of it has written the deadline)
local worker, nonce, beat, held = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local cancelled, fenced, reasserted, missed = {}, {}, {}, {}
local open = gate_open()
local row = read_row(worker)
local mine = not row or row.nonce == nonce
-- a renewal that was overtaken on its way by a later one changes nothing any more
local stale = row and mine and beat < tonumber(row.beat)
-- a repeat of the last one: what it had to write again is written; what is gone since then went in order
local again = row and mine and beat == tonumber(row.beat)

local NAMES = {'run_id', 'claim', 'call', 'route', 'name', 'due', 'state', 'attempt', 'policy', 'handle', 'exit', 'switch', 'flow', 'deployment', 'ttl'}

local function fence(run_id, why)
  fenced[#fenced + 1] = run_id
  fenced[#fenced + 1] = why
end

-- What the leader has put together from the API (see restore) gives way to what the worker knows.
local function corrected(h, state)
  local changes = {restored = '', worker = worker, nonce = ''}
  for _, name in ipairs(NAMES) do
    changes[name] = h[name]
  end
  changes.state = state
  changes.ttl = longest_ttl(h.ttl)
  changes.boot_id, changes.machine = row and row.boot_id or '', row and row.machine or ''
  return changes
end

-- Its owner speaks: the claim is as far as the worker's disk says, never less far than it was.
local function keep(claim, h)
  local state = claim.state == 'missing' and claim.was or claim.state
  local ttl = longest_ttl(tonumber(h.ttl) > 0 and h.ttl or claim.ttl)
  local changes
  if claim.restored == '1' then
    changes = corrected(h, RANK[h.state] > RANK[state] and h.state or state)
  elseif RANK[h.state] > RANK[state] then
    -- no nonce: whoever held it before the loss asks no start for it again
    changes = {
      state = h.state, worker = worker, nonce = '', handle = h.handle, exit = h.exit, ttl = ttl,
      flow = h.flow, deployment = h.deployment,
    }
  end
  if changes then
    reasserted[#reasserted + 1] = claim.run_id
    write_claim(claim, changes)
    if h.state == 'ended' then
      -- as `end` itself would say, had it come first
      hint('freed', claim.run_id)
    end
  elseif claim.state == 'missing' then
    write_claim(claim, {state = state, ttl = ttl})
  else
    redis.call('HINCRBY', key('claim:', claim.run_id), 'moves', 1)
    if claim.process ~= process() then
      redis.call('HSET', key('claim:', claim.run_id), 'process', process())
    end
    if claim.ttl and tonumber(claim.ttl) ~= ttl then
      redis.call('HSET', key('claim:', claim.run_id), 'ttl', ttl)
    end
  end
  if claim.cancel ~= '0' then
    cancelled[#cancelled + 1] = claim.run_id
    cancelled[#cancelled + 1] = claim.cancel
    cancelled[#cancelled + 1] = claim.cancel_why or ''
    cancelled[#cancelled + 1] = claim.cancel_found or ''
  end
end

local function reassert(h)
  write_claim({
    v = VERSION, run_id = h.run_id, claim = h.claim, call = h.call, route = h.route, state = h.state, name = h.name,
    due = h.due, attempt = h.attempt, policy = h.policy, worker = worker, cancel = '0', nonce = '',
    handle = h.handle, exit = h.exit, switch = h.switch, flow = h.flow, deployment = h.deployment,
    ttl = longest_ttl(h.ttl), boot_id = row and row.boot_id or '', machine = row and row.machine or '',
  }, {})
  reasserted[#reasserted + 1] = h.run_id
end

local function renew(h)
  local claim = read_claim(h.run_id)
  local started = RANK[h.state] >= RANK.starting
  local tomb = read_tomb(h.run_id)
  if forgotten(h.claim) then
    fence(h.run_id, 'forgotten')
    return
  end
  if claim and claim.claim == h.claim then
    if claim.v ~= VERSION then
      fence(h.run_id, 'version')
    elseif claim.worker ~= '' and claim.worker ~= worker and claim.restored ~= '1' then
      fence(h.run_id, 'owner')
    elseif claim.state == 'returning' and claim.by == worker then
      redis.call('HINCRBY', key('claim:', h.run_id), 'moves', 1)
    elseif claim.state == 'returning' and not (started and claim.process ~= process()) then
      fence(h.run_id, 'state')
    elseif claim.state == 'judged' then
      fence(h.run_id, 'state')
    elseif claim.state == 'returning' then
      -- given back by the leader from a state that Redis had lost the end of: the host knows that it has started
      claim.state = 'taken'
      keep(claim, h)
    else
      keep(claim, h)
    end
    return
  end
  local record = read_record(h.claim)
  if record and record.move == 'inherit' then
    -- the leader has told its end: its owner comes to the same end by itself
    return
  end
  if (tomb and tomb.claim == h.claim) or (record and record.move == 'bury') then
    fence(h.run_id, 'buried')
  elseif tomb and not (started and tomb.process ~= process()) then
    -- no claim passes a tombstone, so this one is older, unless a loss of Redis has brought the tombstone back
    fence(h.run_id, 'other-claim')
  elseif again then
    fence(h.run_id, claim and 'other-claim' or 'unknown')
  elseif record and not (started and record.by == 'leader' and not claim) then
    -- gone in order. Only a started one that a leader dropped comes back: without a loss it could not have been dropped.
    fence(h.run_id, claim and 'other-claim' or 'unknown')
  elseif claim and not (started and claim.v == VERSION and claim.process ~= process()) then
    fence(h.run_id, 'other-claim')
  elseif not claim and not started and open then
    -- not begun, and the sweep that opened the gate has handed it back
    fence(h.run_id, 'unknown')
  else
    if claim then
      -- an older claim, which Redis has brought back: this one could only start after that one was gone
      remove_claim(claim, 'replace', 'replaced', 'replaced by ' .. h.claim .. ' after a loss of Redis')
    end
    redis.call('HDEL', key('tombs'), h.run_id)
    redis.call('HDEL', key('records'), h.claim)
    redis.call('ZREM', key('gone'), h.claim)
    reassert(h)
  end
end

local holds = {}
for i = 0, held - 1 do
  local h = {}
  for j, name in ipairs(NAMES) do
    h[name] = ARGV[4 + i * #NAMES + j]
  end
  holds[h.claim] = true
  if not mine then
    fence(h.run_id, 'owner')
  elseif not stale then
    renew(h)
  end
end
-- a renewal that its worker's sign-off has overtaken on the way brings nobody back to life
if row and mine and not stale and row.gone ~= 'stopped' then
  redis.call('HSET', key('worker:', worker), 'beat', beat, 'seen', now(), 'live', '1', 'gone', '')
  if row.live ~= '1' then
    hint('freed', worker)
  end
end
-- What this host has not answered for: claims that were not heard of for too long, and tombstones. It looks whether a process is left.
local function ask_for(run_id, claim_id, owner)
  if owner ~= '' and of_host(owner, worker) and not holds[claim_id] then
    for _, text in ipairs({run_id, claim_id, owner}) do
      missed[#missed + 1] = text
    end
  end
end
if row and mine and not stale then
  local lost = redis.call('HGETALL', key('lost'))
  for i = 1, #lost, 2 do
    local claim = of_host(lost[i + 1], worker) and read_claim(lost[i])
    if claim then
      ask_for(claim.run_id, claim.claim, claim.worker)
    end
  end
  for _, text in ipairs(redis.call('HVALS', key('tombs'))) do
    local tomb = cjson.decode(text)
    ask_for(tomb.run_id, tomb.claim, tomb.worker)
  end
end
local wanted = row and row.wanted or 'active'
local lease = redis.call('HMGET', key('lease'), 'renew_seconds', 'ttl_seconds', 'grace_seconds')
for i = 1, 3 do
  lease[i] = lease[i] or ''
end
return {
  (row and mine) and 1 or 0, open and 1 or 0, wanted, lease, redis.call('SMEMBERS', key('routes')), cancelled, fenced, reasserted,
  missed, ledgers(),
}
