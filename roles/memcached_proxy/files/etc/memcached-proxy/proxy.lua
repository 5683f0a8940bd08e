-- Routes of memcached's proxy. The same on each host; what differs is in pools.lua, the argument of this program.
-- It is run in two places: pools are made in the configuration's state, requests are served in each worker's.

local RESERVED = "memcached_proxy" -- `get memcached_proxy:<pool>` tells the membership that is in use
local FORGET = 10000 -- milliseconds without failures after which a pool is well again
local QUIET = 20 -- milliseconds without an answer after which a node is asked first, before it is told to count

-- Configuration ------------------------------------------------------------------------------------------------

-- Kept over reloads: the last good plan, and the texts that it was made from.
memcached_proxy = memcached_proxy or {}
local kept = memcached_proxy

local function log(message)
    io.stderr:write("memcached-proxy: ", message, "\n")
end

local function read(path)
    local file, problem = io.open(path)
    if not file then error(problem, 0) end
    local text = file:read("a")
    file:close()
    return text
end

local function expect(condition, message)
    if not condition then error(message, 0) end
end

-- The resolver's form of a membership: its digest, then a line for each member.
local function members_of(text)
    local members, digest = {}, text:match("^# (%x+)\n")
    for address, port in text:gmatch("([^%s#]+) (%d+)\n") do
        members[#members + 1] = { address, tonumber(port) }
    end
    return members, digest
end

local function check_pool(pool)
    expect(type(pool.name) == "string" and pool.name ~= "", "a pool has no name")
    expect(#pool.members > 0, "the pool " .. pool.name .. " has no members")
    local seen = {}
    for _, member in ipairs(pool.members) do
        local address, port = member[1], member[2]
        expect(type(address) == "string" and address:match("^[%x.:]+$"),
            "the pool " .. pool.name .. " has a member without an address: " .. tostring(address))
        expect(math.type(port) == "integer" and port > 0 and port < 65536,
            "the pool " .. pool.name .. " has a member without a port: " .. address)
        expect(not seen[address .. " " .. port], "the pool " .. pool.name .. " has twice " .. address)
        seen[address .. " " .. port] = true
    end
end

-- Read and check pools.lua; it is data and can call nothing. Gives the plan and all texts that it stands in.
local function read_plan()
    local texts = { read(debug.getinfo(1, "S").source:sub(2)), read(mcp.start_arg) }
    local chunk, problem = load(texts[2], "@" .. mcp.start_arg, "t", {})
    expect(chunk, problem)
    local plan = chunk()
    expect(type(plan) == "table" and #plan.pools > 0, "there is no pool")
    local known = {}
    for _, pool in ipairs(plan.pools) do
        if pool.members_file then
            texts[#texts + 1] = read(pool.members_file)
            pool.members, pool.digest = members_of(texts[#texts])
        end
        check_pool(pool)
        known[pool.name] = true
    end
    for prefix, name in pairs(plan.routes) do
        expect(known[name], "the prefix " .. prefix .. " leads to the unknown pool " .. tostring(name))
    end
    for _, option in ipairs({ "copies", "patience", "failover_expire", "timeout" }) do
        expect(type(plan[option]) == "number", option .. " is not a number")
    end
    return plan, table.concat(texts, "\0")
end

-- Each node's place on the ring comes from its address. In the n-th ring the places are the same, but a node's place
-- is another's: that of the n-th before it. So a key's copies never are on one node.
local function ring(shift)
    return {
        new = function(nodes, options)
            local order = {}
            for index in ipairs(nodes) do order[index] = index end
            table.sort(order, function(a, b)
                return nodes[a].addr .. ":" .. nodes[a].port < nodes[b].addr .. ":" .. nodes[b].port
            end)
            for position, index in ipairs(order) do
                nodes[index].id = order[(position - 1 + shift) % #order + 1]
            end
            return mcp.dist_ring_hash.new(nodes, options)
        end,
    }
end

local function single(number)
    return (string.unpack("f", string.pack("f", number)))
end

-- How many points each of so many nodes has: 160, but 156 of each of 25, 47, 50 …, as libmemcached computes them in
-- single precision and rounds down.
local function points(count)
    return 4 * math.floor(single(single(single(single(1 / count) * 160) / 4 * count) + 1e-10))
end

local function build(plan)
    local pools = {}
    for index, pool in ipairs(plan.pools) do
        local backends = {}
        for position, member in ipairs(pool.members) do
            backends[position] = mcp.backend({
                label = member[1] .. ":" .. member[2],
                host = member[1],
                port = tostring(member[2]),
                connecttimeout = plan.timeout,
                readtimeout = plan.timeout,
                -- Connected anew at once, as after a client's error; then tried each second, and never more seldom.
                failurelimit = 1,
                retrywaittime = 1,
                flaptime = 0,
            })
        end
        local wanted = plan.copies > 1 and plan.copies or plan.failover and 2 or 1
        local rings = {}
        for number = 1, math.min(wanted, #backends) do
            rings[number] = mcp.pool(backends, {
                dist = ring(number - 1),
                -- The ring of libmemcached's ketama_weighted with MD5: there 11211 is not part of a place, either.
                omode = "twemproxy",
                obuckets = points(#backends),
                hash = mcp.dist_ring_hash.hash,
            })
        end
        pools[index] = { name = pool.name, rings = rings, digest = pool.digest or "", size = #backends }
    end
    return {
        pools = pools,
        routes = plan.routes,
        separator = plan.separator,
        copies = plan.copies,
        patience = plan.patience,
        failover_expire = plan.failover_expire,
    }
end

-- A configuration that can't be used must not end a process that has a good one; without one there's nothing to serve.
function mcp_config_pools()
    local good, plan, texts = pcall(read_plan)
    local made, result = false, plan
    if good then made, result = pcall(build, plan) end
    if made then
        kept.plan, kept.texts = plan, texts
        if os.getenv("MEMCACHED_PROXY_CHECK") then os.exit(0) end
    else
        expect(kept.plan, result)
        log("the new configuration is not used: " .. tostring(result))
        result = build(kept.plan)
    end
    -- Told of anew at each load, or it would be forgotten.
    mcp.register_cron("membership", {
        every = 1,
        func = function()
            local readable, problem, now = pcall(read_plan)
            local state = readable and now or problem
            if state == kept.refused then return end
            kept.refused = nil
            if state == kept.texts then return end
            if readable then
                mcp.schedule_config_reload()
                log("the configuration has changed")
            else
                kept.refused = state
                log("the changed configuration is not used: " .. tostring(problem))
            end
        end,
    })
    return result
end

-- Requests -----------------------------------------------------------------------------------------------------

-- A node that doesn't answer, and one that answers with an error of its own, look the same here.
local function answered(result)
    return result and (result:ok() or result:code() ~= mcp.MCMC_CODE_SERVER_ERROR)
end

-- Which node fails can't be told here, so each worker keeps for each pool when failures began.
local Pool = {}
Pool.__index = Pool

-- Whether a request that failed may be held, as its node may only be restarting.
function Pool:may_wait()
    local now = mcp.time_mono_millis()
    if now - self.failed > FORGET then self.failing_since = now end
    self.failed = now
    return now - self.failing_since < self.patience
end

-- Ask the node of a request something harmless until it answers. Gives whether it did, and the last result.
function Pool:reach(context, request, handles)
    local probe, result = mcp.request("mg " .. request:key() .. "\r\n"), nil
    for number = 2, #handles - 1 do
        if number > 2 then context:sleep(self.pauses[number - 2]) end
        result = context:enqueue_and_wait(probe, handles[number])
        if answered(result) then
            -- It was worth to wait: the next node that restarts is waited for anew.
            if number > 2 then self.failed = -FORGET end
            return true, result
        end
        if not self:may_wait() then break end
    end
    return false, result
end

-- Send a request that failed a second time, when its node answers. Gives the result, and whether the node did.
function Pool:send_again(context, request, handles)
    local reached, result = self:reach(context, request, handles)
    if reached then result = context:enqueue_and_wait(request, handles[#handles]) end
    return result, reached
end

-- Send a request that may be carried out twice.
function Pool:send(context, request, handles)
    local result = context:enqueue_and_wait(request, handles[1])
    if answered(result) then return result, true end
    return self:send_again(context, request, handles)
end

-- Counting twice is worse than an error. A request that failed may have been carried out, so it's never repeated.
-- Instead its node is asked for ahead when it may be away, and the request is held until it's there.
-- Gives the result, and whether the request may have reached the node.
function Pool:send_once(context, request, handles)
    local now = mcp.time_mono_millis()
    if self.patience > 0 and (now - self.failed < FORGET or now - self.counted > QUIET) then
        local reached, result = self:reach(context, request, handles)
        if not reached then return result, false end
    end
    local result = context:enqueue_and_wait(request, handles[1])
    self.counted = answered(result) and mcp.time_mono_millis() or -FORGET
    return result, true
end

local EXPIRY = { -- where a command has it
    [mcp.CMD_SET] = 4, [mcp.CMD_ADD] = 4, [mcp.CMD_REPLACE] = 4, [mcp.CMD_CAS] = 4,
    [mcp.CMD_APPEND] = 4, [mcp.CMD_PREPEND] = 4,
    [mcp.CMD_TOUCH] = 3, [mcp.CMD_GAT] = 2, [mcp.CMD_GATS] = 2,
}

-- What a node holds in place of another must be gone soon, or it would be found again, old, at the next failure.
local function shorten(request, expire)
    local function limit(given)
        local seconds = tonumber(given)
        return (not seconds or seconds == 0 or seconds > expire) and tostring(expire) or nil
    end
    local command = request:command()
    local position = EXPIRY[command]
    if position then
        local limited = limit(request:token(position))
        if limited then request:token(position, limited) end
    elseif command == mcp.CMD_MS or command == mcp.CMD_MG or command == mcp.CMD_MA then
        for _, flag in ipairs({ "T", "N" }) do
            local there, given = request:flag_token(flag)
            if there or (flag == "T" and command == mcp.CMD_MS) then
                local limited = limit(given)
                if limited then request:flag_set(flag, limited) end
            end
        end
    end
end

-- One copy: at its node, or for a short time at the next one.
local single = {}

local function failing_over(send)
    return function(pool, context, request, places)
        local result, reached = pool[send](pool, context, request, places[1])
        if reached or not places[2] then return result end
        shorten(request, pool.failover_expire)
        return context:enqueue_and_wait(request, places[2][1])
    end
end

single.read = failing_over("send")
single.write = single.read
single.once = failing_over("send_once")

-- Several copies: written to all, read from the first that has it.
local several = {}

function several.read(pool, context, request, places)
    local miss
    for _, handles in ipairs(places) do
        local result = context:enqueue_and_wait(request, handles[1])
        if result:hit() then return result end
        if answered(result) then miss = miss or result end
    end
    if miss then return miss end
    local result, reached
    for _, handles in ipairs(places) do
        result, reached = pool:send_again(context, request, handles)
        if reached then break end
    end
    return result
end

function several.write(pool, context, request, places)
    local firsts, best, failed = {}, nil, nil
    for number, handles in ipairs(places) do firsts[number] = handles[1] end
    context:enqueue(request, firsts)
    context:wait_cond(#firsts, mcp.WAIT_ANY)
    for number, handles in ipairs(places) do
        local result = context:res_any(firsts[number])
        if not answered(result) then result = pool:send_again(context, request, handles) end
        if answered(result) then best = best or result else failed = result end
    end
    return best or failed
end

function several.once(pool, context, request, places)
    local best, failed
    for _, handles in ipairs(places) do
        local result, reached
        if best and request:command() == mcp.CMD_CAS then
            -- The unique number is that of the first copy's node. An old value must not stay beside the new one.
            result = pool:send(context, mcp.request("delete " .. request:key() .. "\r\n"), handles)
        else
            result, reached = pool:send_once(context, request, handles)
        end
        if answered(result) then
            best = best or result
        else
            failed = result
            if reached and not best then break end -- whether it was carried out is not known: say so
        end
    end
    return best or failed
end

local CLASSES = {
    [mcp.CMD_GET] = "read", [mcp.CMD_GETS] = "read", [mcp.CMD_GAT] = "read", [mcp.CMD_GATS] = "read",
    [mcp.CMD_MG] = "read",
    [mcp.CMD_SET] = "write", [mcp.CMD_REPLACE] = "write", [mcp.CMD_TOUCH] = "write", [mcp.CMD_DELETE] = "write",
    [mcp.CMD_MD] = "write",
    [mcp.CMD_ADD] = "once", [mcp.CMD_CAS] = "once", [mcp.CMD_APPEND] = "once", [mcp.CMD_PREPEND] = "once",
    [mcp.CMD_INCR] = "once", [mcp.CMD_DECR] = "once", [mcp.CMD_MA] = "once",
    [mcp.CMD_MS] = "set",
}

-- ms sets, or adds, appends, compares …: by its flags.
local function by_flags(kind)
    return function(pool, context, request, places)
        local plain = not (request:has_flag("M") or request:has_flag("C"))
        return (plain and kind.write or kind.once)(pool, context, request, places)
    end
end

local function generator(pool, rings, serve)
    local generated, places = mcp.funcgen_new(), {}
    for number, nodes in ipairs(rings) do
        places[number] = {}
        -- A handle can be used once: for a request, for probes between pauses, for the request again.
        for use = 1, (number == 1 or pool.copies > 1) and #pool.pauses + 3 or 1 do
            places[number][use] = generated:new_handle(nodes)
        end
    end
    generated:ready({
        n = pool.name,
        f = function(context)
            return function(request) return serve(pool, context, request, places) end
        end,
    })
    return generated
end

-- Pauses between the attempts: short ones first, a quarter of a second later, as nodes are tried each second.
local function pauses(patience)
    local result, sum = {}, 0
    while sum < patience do
        result[#result + 1] = math.min(0.05 * 2 ^ #result, 0.25)
        sum = sum + result[#result]
    end
    return result
end

local function routes_of(plan, described)
    local pool = setmetatable({
        name = described.name,
        copies = plan.copies,
        patience = plan.patience * 1000,
        pauses = pauses(plan.patience),
        failover_expire = plan.failover_expire,
        failing_since = 0,
        failed = -FORGET,
        counted = -FORGET,
    }, Pool)
    local kind = plan.copies > 1 and several or single
    local served, routes = { read = kind.read, write = kind.write, once = kind.once, set = by_flags(kind) }, {}
    local made = {}
    for command, class in pairs(CLASSES) do
        made[class] = made[class] or generator(pool, described.rings, served[class])
        routes[command] = made[class]
    end
    return routes
end

-- Tells which membership of a pool is in use: its digest, and the number of members.
local function teller(pools)
    local generated, memberships = mcp.funcgen_new(), {}
    for _, pool in ipairs(pools) do memberships[pool.name] = pool.digest .. " " .. pool.size end
    generated:ready({
        n = RESERVED,
        f = function()
            return function(request)
                local key = request:key()
                local membership = memberships[key:sub(#RESERVED + 2)]
                if not membership then return "END\r\n" end
                return string.format("VALUE %s 0 %d\r\n%s\r\nEND\r\n", key, #membership, membership)
            end
        end,
    })
    return generated
end

function mcp_config_routes(plan)
    local by_pool, by_prefix = {}, {}
    for _, pool in ipairs(plan.pools) do by_pool[pool.name] = routes_of(plan, pool) end
    for prefix, name in pairs(plan.routes) do by_prefix[prefix] = by_pool[name] end
    by_prefix[RESERVED] = { [mcp.CMD_GET] = teller(plan.pools) }
    mcp.attach(mcp.CMD_ANY_STORAGE, mcp.router_new({
        map = by_prefix,
        mode = "prefix",
        stop = plan.separator,
        cmap = by_pool[plan.pools[1].name],
    }))
end
