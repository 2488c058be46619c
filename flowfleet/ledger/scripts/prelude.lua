-- What every script stands on: keys, the gate, the term, reading and writing a claim. `MOVES` comes from transitions.py.
-- KEYS[1] is the fleet's prefix. All values of a claim are text; handle and exit are JSON that no script looks into.

local PREFIX = KEYS[1]
local VERSION = '1'
local KEPT_SECONDS = 86400
local KEPT_RECORDS = 10000
local KEPT_ATTEMPTS_SECONDS = 7 * 86400
-- more than any queue has in order: what somebody else has put there may be without an end
local QUEUE_LOOK = 1000
-- as claim.py has it
local UNKNOWN_WORKER = 'unknown@unknown'
-- as ledger_id.py has it
local KEPT_LEDGERS = 16
local RANK = {claiming = 1, queued = 2, taken = 3, starting = 4, running = 5, ended = 6}

local function key(...)
  return PREFIX .. table.concat({...})
end

-- unix seconds by the clock of the Redis host: for display and clean-up only, no decision may rest on it
local function now()
  local time = redis.call('TIME')
  return string.format('%d.%06d', time[1], time[2])
end

-- the id of this server process: a restart, an empty server and a promoted replica all have another. So has a primary
-- that was a replica for a while, since it has lost what its successor had not heard of: with each promotion Redis keeps
-- the replication id of before as the second one, which is all zeros until then.
local PROCESS
local function process()
  if not PROCESS then
    PROCESS = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
    local before = string.match(redis.call('INFO', 'replication'), 'master_replid2:(%x+)')
    if before and string.find(before, '[^0]') then
      PROCESS = PROCESS .. '-' .. before
    end
  end
  return PROCESS
end

local function gate_open()
  return redis.call('HGET', key('gate'), 'server') == process()
end

local function term_stands(term)
  local leader = redis.call('HMGET', key('leader'), 'term', 'nonce')
  return leader[2] and leader[2] ~= '' and leader[1] == term
end

local function hint(kind, text)
  redis.call('PUBLISH', key('hints'), cjson.encode({kind = kind, text = text or ''}))
end

local function count(name)
  redis.call('HINCRBY', key('counters'), name, 1)
end

-- The ids by which this ledger is known: its own first, then earlier ones that its parts remember.
local function ledgers()
  return redis.call('ZRANGE', key('ledgers'), 0, -1)
end

-- Makes these ids, joined by commas, all by which the ledger is known, in their order: what is too many stands last, and goes.
local function keep_ledgers(ids)
  local place, seen = 0, {}
  redis.call('DEL', key('ledgers'))
  for id in string.gmatch(ids, '[^,]+') do
    if not seen[id] and place < KEPT_LEDGERS then
      place, seen[id] = place + 1, true
      redis.call('ZADD', key('ledgers'), place, id)
    end
  end
end

-- Adds the ids that a part remembers, behind those that are known.
local function remember(ids)
  for id in string.gmatch(ids, '[^,]+') do
    if not redis.call('ZSCORE', key('ledgers'), id) then
      keep_ledgers(table.concat(ledgers(), ',') .. ',' .. ids)
      return
    end
  end
end

local function to_table(flat)
  local fields = {}
  for i = 1, #flat, 2 do
    fields[flat[i]] = flat[i + 1]
  end
  return fields
end

local function to_flat(fields)
  local flat = {}
  for name, value in pairs(fields) do
    flat[#flat + 1] = name
    flat[#flat + 1] = tostring(value)
  end
  return flat
end

local function read_hash(name)
  local flat = redis.call('HGETALL', name)
  if #flat == 0 then
    return nil
  end
  return to_table(flat)
end

local function read_claim(run_id)
  return read_hash(key('claim:', run_id))
end

local function read_row(worker)
  return read_hash(key('worker:', worker))
end

-- an answer: {1, '', claim} or {0, refusal, claim}
local function moved(claim)
  return {1, '', claim and to_flat(claim) or {}}
end

local function refused(why, claim)
  return {0, why, claim and to_flat(claim) or {}}
end

-- Writes changes of a claim. `process` tells under which server process its owner, or its birth, last wrote it: what is older
-- may have gone on without Redis knowing (see take and renew), so the leader's moves do not freshen it.
local function write_claim(claim, changes, by_leader)
  for name, value in pairs(changes) do
    claim[name] = tostring(value)
  end
  claim.moves = tostring((tonumber(claim.moves) or 0) + 1)
  claim.since = now()
  if claim.state == 'missing' then
    redis.call('HSET', key('lost'), claim.run_id, claim.worker)
  elseif claim.was and claim.was ~= '' and claim.state ~= 'judged' then
    -- it has been heard of again
    claim.was, claim.missed_at, claim.proof = '', '', ''
    redis.call('HDEL', key('lost'), claim.run_id)
  end
  if not by_leader then
    claim.process = process()
  end
  redis.call('HSET', key('claim:', claim.run_id), unpack(to_flat(claim)))
  redis.call('SADD', key('claims'), claim.run_id)
end

local function trim_records()
  local old = redis.call('ZRANGEBYSCORE', key('gone'), '-inf', '(' .. (now() - KEPT_SECONDS), 'LIMIT', 0, 100)
  local over = redis.call('ZCARD', key('gone')) - #old - KEPT_RECORDS
  if #old == 0 and over > 0 then
    old = redis.call('ZRANGE', key('gone'), 0, math.min(over, 100) - 1)
  end
  if #old > 0 then
    redis.call('ZREM', key('gone'), unpack(old))
    redis.call('HDEL', key('records'), unpack(old))
  end
end

-- How often a run was started again, by us: no key expires, so what is never asked for goes when it is old, or when there are too
-- many. Any other end begins the count anew.
local function count_attempts(claim, again)
  if again then
    redis.call('HSET', key('attempts'), claim.run_id, claim.attempt)
    redis.call('ZADD', key('attempted'), now(), claim.run_id)
    local old = redis.call('ZRANGE', key('attempted'), 0, -KEPT_RECORDS - 1)
    if #old == 0 then
      old = redis.call('ZRANGEBYSCORE', key('attempted'), '-inf', '(' .. (now() - KEPT_ATTEMPTS_SECONDS), 'LIMIT', 0, 100)
    end
    for _, run_id in ipairs(old) do
      redis.call('HDEL', key('attempts'), run_id)
      redis.call('ZREM', key('attempted'), run_id)
    end
  elseif redis.call('HDEL', key('attempts'), claim.run_id) == 1 then
    redis.call('ZREM', key('attempted'), claim.run_id)
  end
end

-- The claim goes; its record stays as what `explain` reads and keeps it from coming back.
local function remove_claim(claim, move, by, reason)
  redis.call('DEL', key('claim:', claim.run_id))
  redis.call('SREM', key('claims'), claim.run_id)
  redis.call('HDEL', key('lost'), claim.run_id)
  claim.move = move
  claim.by = by
  claim.reason = reason
  claim.gone_at = now()
  redis.call('HSET', key('records'), claim.claim, cjson.encode(claim))
  redis.call('ZADD', key('gone'), claim.gone_at, claim.claim)
  trim_records()
end

local function read_record(claim_id)
  local text = redis.call('HGET', key('records'), claim_id)
  return text and cjson.decode(text) or nil
end

-- The tombstone of a run whose buried claim may have a live process, or nil. Its values are text.
local function read_tomb(run_id)
  local text = redis.call('HGET', key('tombs'), run_id)
  return text and cjson.decode(text) or nil
end

-- Was this claim given up by `worker forget`? Whatever becomes of its process, it says nothing about the run any more.
local function forgotten(claim_id)
  return redis.call('ZSCORE', key('forgotten'), claim_id) and true or false
end

local function host_of(worker)
  return string.match(worker or '', '@([^@]*)$')
end

-- Is this owner of the worker's host, as far as anybody knows? A restored claim may have an owner whom the API does not name.
local function of_host(owner, worker)
  return owner == UNKNOWN_WORKER or host_of(owner) == host_of(worker)
end

-- The claim that a move is about, or nil and the answer. `move` is a name of the table.
local function find(move, run_id, claim_id)
  local claim = read_claim(run_id)
  if claim and claim.claim == claim_id then
    if claim.v ~= VERSION then
      return nil, refused('version', claim)
    end
    return claim
  end
  if MOVES[move].target == '' then
    -- a repeat of the move that removed it
    local record = read_record(claim_id)
    if record and record.move == move then
      return nil, moved(record)
    end
  end
  if move == 'end' or move == 'release' then
    -- the leader has told its end meanwhile: its owner comes to the same end by itself
    local record = read_record(claim_id)
    if record and record.move == 'inherit' then
      return nil, moved(record)
    end
  end
  return nil, refused(claim and 'other-claim' or 'unknown', claim)
end

-- Like find, for its worker: also that the claim is this worker's. A missing claim whose owner speaks is where it was.
local function find_own(move, run_id, claim_id, worker)
  local claim, answer = find(move, run_id, claim_id)
  if not claim then
    return nil, answer
  end
  if claim.restored == '1' and (move == 'run' or move == 'end') then
    -- whoever says how far it is has its process, whatever the API has named as its worker
    claim.worker = worker
  end
  if claim.worker and claim.worker ~= '' and claim.worker ~= worker then
    return nil, refused('owner', claim)
  end
  if forgotten(claim_id) then
    return nil, refused('forgotten', claim)
  end
  if claim.state == 'missing' then
    claim.state = claim.was
  end
  return claim
end

local function from_source(move, claim)
  return MOVES[move].sources[claim.state]
end

-- Is this process the one that has the worker's name now? A forgotten or replaced one may begin nothing.
local function has_name(worker, nonce)
  return redis.call('HGET', key('worker:', worker), 'nonce') == nonce
end

-- The longest lease by which a host may count that has heard this one, and is answered with the leader's of now: its next
-- deadline is by the one or by the other, as the answer comes or not.
local function longest_ttl(heard)
  return math.max(tonumber(heard) or 0, tonumber(redis.call('HGET', key('lease'), 'ttl_seconds') or 0))
end

-- May runs be sent to this worker? It lives (its beat moves, see lapse), the operator wants it to take runs, and it does not stop.
local function takes_runs(row)
  return row.v == VERSION and row.live == '1' and row.wanted == 'active' and row.leaving ~= '1'
end

local function routes_of(row)
  local routes = {}
  for _, route in ipairs(cjson.decode(row.routes)) do
    routes[route] = true
  end
  return routes
end

-- The message of a claim that goes back, if it still waits: the list is that of the route's Celery queue, and the envelope names
-- the task RUN.CLAIM. One that a worker has fetched meets the refusal of `take`.
local function take_off_queue(claim)
  local queue, task = key('broker:', claim.route), claim.run_id .. '.' .. claim.claim
  for _, message in ipairs(redis.call('LRANGE', queue, -QUEUE_LOOK, -1)) do
    if string.find(message, task, 1, true) then
      redis.call('LREM', queue, 0, message)
    end
  end
end
