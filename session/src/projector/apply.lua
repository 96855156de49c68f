-- Writes changes to a set of projections, together with the watermark, or nothing.
-- Returns the set's sequence afterwards; -1 if the set belongs to another log.
local mark, timelines, closed = KEYS[1], KEYS[7], KEYS[8]
local log, from, to, time, behind = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
if redis.call('HGET', mark, 'log') ~= log then return -1 end
local at = tonumber(redis.call('HGET', mark, 'seq'))
-- Another projector was faster. The caller continues from its sequence.
if at ~= from then return at end

-- A change is a command, the number of its key, and its arguments.
for _, change in ipairs(cjson.decode(ARGV[6])) do
  redis.call(change[1], KEYS[change[2]], unpack(change[3]))
end

local function forget(sessions)
  if #sessions == 0 then return end
  redis.call('ZREM', closed, unpack(sessions))
  redis.call('HDEL', timelines, unpack(sessions))
end
-- Remove closed sessions older than the horizon, and the oldest ones if there are too many.
if ARGV[7] ~= '' then forget(redis.call('ZRANGEBYSCORE', closed, '-inf', '(' .. ARGV[7])) end
forget(redis.call('ZRANGE', closed, 0, -1 - tonumber(ARGV[8])))

redis.call('HSET', mark, 'seq', ARGV[3])
if time ~= '' then redis.call('HSET', mark, 'time', time) end
if behind ~= '' then
  local now = redis.call('TIME')
  redis.call('HSET', mark, 'behind', behind, 'seen', now[1] .. string.format('%03d', math.floor(now[2] / 1000)))
end
return to
