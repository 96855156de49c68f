-- Replaces the live projections (the first half of the keys) with the projections of a rebuild (the second half),
-- unless the live ones have a higher sequence. A live sequence that is higher than the end of the log is wrong and is
-- ignored. Returns the sequence of the live projections afterwards; -1 if the projections of the rebuild do not exist,
-- or belong to another rebuild.
local log, name, last, count = ARGV[1], ARGV[2], tonumber(ARGV[3]), #KEYS / 2
if redis.call('HGET', KEYS[count + 1], 'log') ~= name then return -1 end
local rebuilt = tonumber(redis.call('HGET', KEYS[count + 1], 'seq'))
if redis.call('HGET', KEYS[1], 'log') == log then
  local at = tonumber(redis.call('HGET', KEYS[1], 'seq'))
  -- A reader must never see an older state of the projections than before.
  if at > rebuilt and at <= last then return at end
end
for i = 1, count do
  redis.call('UNLINK', KEYS[i])
  if redis.call('EXISTS', KEYS[count + i]) == 1 then redis.call('RENAME', KEYS[count + i], KEYS[i]) end
end
redis.call('HSET', KEYS[1], 'log', log)
return rebuilt
