-- Puts the projections that were made anew (the second half of the keys) in the place of the live ones (the first),
-- unless these are further: than the new ones, and not than the log itself.
-- Returns where the live ones stand afterwards; -1 when what was made anew is not there, or was made by another.
local log, name, last, count = ARGV[1], ARGV[2], tonumber(ARGV[3]), #KEYS / 2
if redis.call('HGET', KEYS[count + 1], 'log') ~= name then return -1 end
local anew = tonumber(redis.call('HGET', KEYS[count + 1], 'seq'))
if redis.call('HGET', KEYS[1], 'log') == log then
  local at = tonumber(redis.call('HGET', KEYS[1], 'seq'))
  -- Nobody who reads may see a match undone.
  if at > anew and at <= last then return at end
end
for i = 1, count do
  redis.call('UNLINK', KEYS[i])
  if redis.call('EXISTS', KEYS[count + i]) == 1 then redis.call('RENAME', KEYS[count + i], KEYS[i]) end
end
redis.call('HSET', KEYS[1], 'log', log)
return anew
