/* SPDX-License-Identifier: Apache-2.0 */
/* Reads /proc and /sys, once. Sets affinity of the calling thread alone. */
#include "bench-machine.h"

#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include "base/range.h"

static bool read_line(const char *path, char *text, size_t n_bytes)
{
	FILE *file = fopen(path, "re");
	bool done = file && fgets(text, (int)n_bytes, file);

	if (file)
		fclose(file);
	if (done)
		text[strcspn(text, "\n")] = '\0';
	return done;
}

/* The first value of `key` in a file of "key : value" lines. */
static bool read_value(const char *path, const char *key, char *value, size_t n_bytes)
{
	FILE *file = fopen(path, "re");
	char line[1024];
	bool found = false;

	while (file && !found && fgets(line, sizeof(line), file)) {
		char *colon = strchr(line, ':');

		if (!colon || strncmp(line, key, strlen(key)) != 0)
			continue;
		colon++;
		colon += strspn(colon, " \t");
		colon[strcspn(colon, "\n")] = '\0';
		snprintf(value, n_bytes, "%s", colon);
		found = true;
	}
	if (file)
		fclose(file);
	return found;
}

static bool cache_line(unsigned cpu, unsigned index, const char *what, char *text, size_t n_bytes)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%u/cache/index%u/%s", cpu, index,
		 what);
	return read_line(path, text, n_bytes);
}

static bool read_cache(unsigned cpu, unsigned index, struct bench_cache *ret_cache)
{
	struct bench_cache cache = { 0 };
	char text[64], unit = 'K';
	unsigned long size;

	if (!cache_line(cpu, index, "level", text, sizeof(text)) ||
	    sscanf(text, "%u", &cache.level) != 1 ||
	    !cache_line(cpu, index, "size", text, sizeof(text)) ||
	    sscanf(text, "%lu%c", &size, &unit) < 1)
		return false;
	cache.n_bytes = unit == 'M' ? (uint64_t)size << 20 : (uint64_t)size << 10;
	if (cache_line(cpu, index, "type", text, sizeof(text)))
		snprintf(cache.type, sizeof(cache.type), "%.15s", text);
	*ret_cache = cache;
	return true;
}

/* The cache of the highest level of a CPU, and the text that tells it from those of others. */
static uint64_t last_level(unsigned cpu, char *ret_shared, size_t n_bytes)
{
	struct bench_cache cache;
	unsigned level = 0;
	uint64_t size = 0;

	for (unsigned i = 0; i < BENCH_MAX_CACHES && read_cache(cpu, i, &cache); i++) {
		if (cache.level < level)
			continue;
		level = cache.level;
		size = cache.n_bytes;
		if (!cache_line(cpu, i, "shared_cpu_list", ret_shared, n_bytes))
			snprintf(ret_shared, n_bytes, "%u", cpu);
	}
	return size;
}

static void find_caches(struct bench_machine *machine)
{
	char shared[256] = "", seen[256] = "";

	while (machine->n_caches < BENCH_MAX_CACHES &&
	       read_cache(machine->pinned, machine->n_caches, &machine->caches[machine->n_caches]))
		machine->n_caches++;
	machine->last_level_bytes = last_level(machine->pinned, shared, sizeof(shared));
	for (unsigned i = 0; i < machine->n_cpus; i++) {
		uint64_t size = last_level(machine->cpus[i], shared, sizeof(shared));

		/* CPUs of one cache are mostly neighbours; one counted twice only asks for more. */
		if (strcmp(shared, seen) != 0)
			machine->all_last_level_bytes += size;
		memcpy(seen, shared, sizeof(seen));
	}
}

static bool read_bytes(const char *directory, const char *file, uint64_t *ret_bytes)
{
	char path[512], text[64];
	unsigned long long n;

	snprintf(path, sizeof(path), "/sys/fs/cgroup%.400s/%s", directory, file);
	if (!read_line(path, text, sizeof(text)) || sscanf(text, "%llu", &n) != 1)
		return false;
	*ret_bytes = n;
	return true;
}

/* Past the limit of a control group the kernel does not refuse memory, it kills. */
static uint64_t group_room(void)
{
	char group[400] = "", *slash = group;
	uint64_t room = UINT64_MAX, most, used;

	if (!read_value("/proc/self/cgroup", "0:", group, sizeof(group)) || group[0] != ':')
		return room;
	memmove(group, group + 1, strlen(group));
	/* Of each group up to the root, which is the empty path. */
	while (slash) {
		slash = strrchr(group, '/');
		if (slash && slash[1] == '\0')
			*slash = '\0';
		if (read_bytes(group, "memory.max", &most) &&
		    read_bytes(group, "memory.current", &used))
			room = min_u64(room, most > used ? most - used : 0);
		slash = strrchr(group, '/');
		if (slash)
			*slash = '\0';
	}
	return room;
}

void bench_machine_init(struct bench_machine *machine)
{
	struct utsname uts;
	char text[96];
	unsigned long kib;
	cpu_set_t set;

	*machine = (struct bench_machine){ 0 };
	if (!read_value("/proc/cpuinfo", "model name", machine->cpu, sizeof(machine->cpu)))
		snprintf(machine->cpu, sizeof(machine->cpu), "unknown");
	if (uname(&uts) == 0)
		snprintf(machine->kernel, sizeof(machine->kernel), "%.30s %.60s %.30s", uts.sysname,
			 uts.release, uts.machine);
	if (!read_line("/sys/kernel/mm/transparent_hugepage/enabled", machine->huge_pages,
		       sizeof(machine->huge_pages)))
		snprintf(machine->huge_pages, sizeof(machine->huge_pages), "unknown");
	snprintf(machine->compiler, sizeof(machine->compiler), "%.63s", __VERSION__);
	if (read_value("/proc/meminfo", "MemAvailable", text, sizeof(text)) &&
	    sscanf(text, "%lu", &kib) == 1)
		machine->available_bytes = min_u64((uint64_t)kib << 10, group_room());
	if (sched_getaffinity(0, sizeof(set), &set) == 0)
		for (unsigned i = 0; i < CPU_SETSIZE && machine->n_cpus < BENCH_MAX_CPUS; i++)
			if (CPU_ISSET(i, &set))
				machine->cpus[machine->n_cpus++] = i;
	if (machine->n_cpus == 0)
		machine->cpus[machine->n_cpus++] = 0;
	/* The first CPU serves most interrupts. */
	machine->pinned = machine->cpus[machine->n_cpus - 1];
	find_caches(machine);
}

int bench_machine_pin(unsigned cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return sched_setaffinity(0, sizeof(set), &set) == 0 ? 0 : -errno;
}

int bench_machine_unpin(const struct bench_machine *machine)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	for (unsigned i = 0; i < machine->n_cpus; i++)
		CPU_SET(machine->cpus[i], &set);
	return sched_setaffinity(0, sizeof(set), &set) == 0 ? 0 : -errno;
}
