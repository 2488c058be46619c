-- open: accepts this server process. ARGV: term, server process as read when the sweep began
if not term_stands(ARGV[1]) or process() ~= ARGV[2] then
  return 0
end
redis.call('HSET', key('gate'), 'server', ARGV[2])
hint('freed')
return 1
