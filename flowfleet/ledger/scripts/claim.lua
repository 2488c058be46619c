-- claim: nothing -> claiming, for each run of one bulk call, in order, as far as slots are free.
-- ARGV: term, call, policy, most attempts, number of runs, then per run: run id, claim id, route, name, due
local term, call, policy, most, runs = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])

-- The free slots of live, active workers by what they own; `ended` claims hold none (their group is gone).
local owned, waiting, waiting_in_all = {}, {}, 0
for _, run_id in ipairs(redis.call('SMEMBERS', key('claims'))) do
  local claim = redis.call('HMGET', key('claim:', run_id), 'state', 'worker', 'route')
  local state, worker, route = claim[1], claim[2], claim[3]
  if state == 'claiming' or state == 'queued' then
    waiting[route] = (waiting[route] or 0) + 1
    waiting_in_all = waiting_in_all + 1
  elseif state ~= 'ended' and worker and worker ~= '' then
    owned[worker] = (owned[worker] or 0) + 1
  end
end
-- a buried process may live, and then it uses its host as before
local tombs = {}
for _, text in ipairs(redis.call('HVALS', key('tombs'))) do
  local tomb = cjson.decode(text)
  tombs[tomb.run_id] = true
  owned[tomb.worker] = (owned[tomb.worker] or 0) + 1
end
local workers, free_in_all = {}, -waiting_in_all
for _, worker in ipairs(redis.call('SMEMBERS', key('workers'))) do
  local row = read_row(worker)
  if row and takes_runs(row) then
    local free = math.max(0, tonumber(row.slots) - (owned[worker] or 0))
    workers[#workers + 1] = {routes = routes_of(row), free = free}
    free_in_all = free_in_all + free
  end
end

-- What waits on any route that one of these workers also serves may take their slots: count it against this route.
local function free_for(route)
  local free, beside = 0, {}
  for _, worker in ipairs(workers) do
    if worker.routes[route] then
      free = free + worker.free
      for other in pairs(worker.routes) do
        beside[other] = true
      end
    end
  end
  for other in pairs(beside) do
    free = free - (waiting[other] or 0)
  end
  return free
end

local answers = {}
local stands, open = term_stands(term), gate_open()
for i = 0, runs - 1 do
  local at = 5 + i * 5
  local run_id, claim_id, route = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local known = read_claim(run_id)
  local answer
  if not stands then
    answer = refused('term', known)
  elseif known and known.claim == claim_id and known.state == 'claiming' then
    answer = moved(known)
  elseif known then
    answer = refused('known', known)
  elseif read_record(claim_id) then
    answer = refused('known')
  elseif tombs[run_id] then
    answer = refused('buried')
  elseif not open then
    answer = refused('gate')
  elseif free_in_all < 1 or free_for(route) < 1 then
    answer = refused('no-slot')
  else
    local attempt = (tonumber(redis.call('HGET', key('attempts'), run_id)) or 0) + 1
    local claim = {
      v = VERSION, run_id = run_id, claim = claim_id, call = call, route = route, state = 'claiming',
      name = ARGV[at + 4], due = ARGV[at + 5], attempt = tostring(attempt), worker = '', cancel = '0',
      policy = attempt <= most and policy or 'report', most = tostring(most),
    }
    write_claim(claim, {})
    waiting[route] = (waiting[route] or 0) + 1
    free_in_all = free_in_all - 1
    answer = moved(claim)
  end
  answers[i + 1] = answer
end
return answers
