-- restore: nothing -> missing, for a run that the API shows as launched by this fleet and that nobody has told the ledger of.
-- ARGV: term, run id, claim id, call, route, name, due, worker
-- What the API knows of the claim is hearsay: whoever holds this claim id corrects it with a renewal (see keep in renew). So no
-- process has written it (`process` is empty), and it is `restored` until then.
local term, run_id, claim_id = ARGV[1], ARGV[2], ARGV[3]
local known = read_claim(run_id)
if not term_stands(term) then
  return refused('term', known)
end
if known and known.claim == claim_id and known.state == 'missing' and known.restored == '1' then
  return moved(known)
end
-- Used up, but for one that a leader has dropped: its run could only have been launched if Redis had lost that (see renew).
local record = read_record(claim_id)
if known or (record and not (record.move == 'drop (leader)' and record.by == 'leader')) then
  return refused('known', known)
end
if read_tomb(run_id) then
  return refused('buried')
end
-- While it is shut, workers have not had their time yet to say so themselves.
if not gate_open() then
  return refused('gate')
end
local claim = {
  v = VERSION, run_id = run_id, claim = claim_id, call = ARGV[4], route = ARGV[5], name = ARGV[6], due = ARGV[7],
  worker = ARGV[8], state = 'missing', was = 'starting', missed_at = now(), restored = '1', process = '', nonce = '',
  attempt = '1', most = '0', policy = 'report', cancel = '0', proof = forgotten(claim_id) and 'forgotten' or '',
}
write_claim(claim, {}, true)
return moved(claim)
