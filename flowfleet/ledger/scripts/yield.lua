-- yield: queued -> returning, for all claims that no worker is left to take. ARGV: worker, nonce, how, reason
-- `how` is `stopping` (the worker takes no runs any more), `idle` (the operator's word keeps it from taking any) or `finishing` (it
-- goes on taking runs, and only finishes what dead workers were handing back). The answer: {1, claims to hand back} or {0, {}}.
local worker, nonce, how, reason = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not has_name(worker, nonce) then
  return {0, {}}
end
if how == 'stopping' then
  -- in the same step as the rest: nothing is claimed for this worker after its claims have gone back
  redis.call('HSET', key('worker:', worker), 'leaving', '1')
end
local served, rows = {}, {}
for _, name in ipairs(redis.call('SMEMBERS', key('workers'))) do
  local row = read_row(name)
  if row then
    rows[name] = row
    if name ~= worker and takes_runs(row) then
      for route in pairs(routes_of(row)) do
        served[route] = true
      end
    end
  end
end

-- What another worker, or an earlier process of this one, was handing back as it died: its API may not have been told.
local function left_behind(claim)
  if claim.state ~= 'returning' or claim.by == 'leader' then
    return false
  end
  local row = rows[claim.by]
  return not row or row.live ~= '1' or (claim.yielded ~= nil and claim.yielded ~= row.nonce)
end

local yielded, open = {}, gate_open()
for _, run_id in ipairs(redis.call('SMEMBERS', key('claims'))) do
  local claim = read_claim(run_id)
  if claim and claim.v == VERSION then
    -- what was queued before the gate shut may have been taken without Redis knowing: the leader hands it back
    local waits = from_source('yield', claim) and open and claim.process == process() and not served[claim.route]
    if waits and how ~= 'finishing' then
      take_off_queue(claim)
      write_claim(claim, {
        state = 'returning', worker = worker, by = worker, yielded = nonce, reason = reason, never_began = '0',
      })
    elseif left_behind(claim) then
      write_claim(claim, {worker = worker, by = worker, yielded = nonce})
    end
    -- also what an earlier question has moved, whose answer was lost
    if claim.state == 'returning' and claim.by == worker and claim.yielded == nonce then
      yielded[#yielded + 1] = to_flat(claim)
    end
  end
end
return {1, yielded}
