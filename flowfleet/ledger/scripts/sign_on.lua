-- sign on: writes a worker's row, or answers with the row that stands in the way.
-- ARGV: worker, nonce seen, beat seen (both empty: none), the ledger ids that it remembers (joined by commas),
-- then names and values
local worker, seen_nonce, seen_beat = ARGV[1], ARGV[2], ARGV[3]
local fields = {}
for i = 5, #ARGV, 2 do
  fields[ARGV[i]] = ARGV[i + 1]
end
local row = read_row(worker)
if row and row.nonce ~= fields.nonce and row.live == '1' then
  if not (row.nonce == seen_nonce and row.beat == seen_beat) then
    return to_flat(row)
  end
end
if row then
  -- the operator's word belongs to the identity and outlives its processes
  fields.wanted = row.wanted
  fields.note = row.note
end
fields.live = '1'
fields.seen = now()
redis.call('DEL', key('worker:', worker))
redis.call('HSET', key('worker:', worker), unpack(to_flat(fields)))
redis.call('SADD', key('workers'), worker)
remember(ARGV[4])
hint('freed', worker)
return {}
