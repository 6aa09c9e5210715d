/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Statistics and status as JSON. Field names are those of struct store_stats and
 * struct store_model_stats. Loop thread; changes nothing.
 */
#include "daemon/stats.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "daemon/server.h"

static void stats_count(json_t *object, const char *name, uint64_t value)
{
	json_object_set_new(object, name, json_integer((json_int_t)value));
}

static void stats_hex(json_t *object, const char *name, const uint8_t *bytes, size_t n_bytes)
{
	char text[65];

	for (size_t i = 0; i < n_bytes && i < 32; i++)
		snprintf(text + 2 * i, 3, "%02x", bytes[i]);
	json_object_set_new(object, name, json_string(text));
}

static void stats_visit(void *data, const struct store_model_stats *model)
{
	json_t *list = data, *o = json_object();

	json_object_set_new(o, "name", json_string(model->name));
	/* A path need not be UTF-8, JSON must be. */
	json_t *path = json_string(model->path ? model->path : "");
	json_object_set_new(o, "path", path ? path : json_string("(not UTF-8)"));
	stats_hex(o, "fingerprint", model->fingerprint, sizeof(model->fingerprint));
	stats_count(o, "n_tensors", model->n_tensors);
	stats_count(o, "decoded_model_bytes", model->decoded_model_bytes);
	stats_count(o, "compressed_bytes", model->compressed_bytes);
	stats_count(o, "arena_bytes", model->arena_bytes);
	stats_count(o, "decodes", model->decodes);
	stats_count(o, "n_clients", model->n_clients);
	stats_count(o, "n_leases", model->n_leases);
	json_object_set_new(o, "loading", json_boolean(model->loading));
	json_object_set_new(o, "retired", json_boolean(model->retired));
	json_array_append_new(list, o);
}

json_t *stats_models(const struct server *server)
{
	json_t *list = json_array();

	if (list)
		store_visit_models(server->store, stats_visit, list);
	return list;
}

json_t *stats_report(const struct server *server)
{
	struct store_stats s;
	json_t *o = json_object();
	char instance[17];

	store_get_stats(server->store, &s);
	snprintf(instance, sizeof(instance), "%016" PRIx64, server->instance);
	json_object_set_new(o, "ok", json_true());
	json_object_set_new(o, "version", json_string(DCMEM_VERSION));
	json_object_set_new(o, "instance", json_string(instance));
	stats_count(o, "pid", (uint64_t)getpid());
	stats_count(o, "uptime_s", (clock_now_ns() - server->started_ns) / NS_PER_S);
	json_object_set_new(o, "io", json_string(loop_name(server->loop)));
	stats_count(o, "loop_completions", server->loop->n_completions);
	stats_count(o, "connections", server->n_connections);
	stats_count(o, "accepted", server->n_accepted);
	stats_count(o, "refused", server->n_refused);
	stats_count(o, "packets", server->n_packets);
	stats_count(o, "protocol_errors", server->n_protocol_errors);
	stats_count(o, "text_requests", server->n_text_requests);
	stats_count(o, "rings", server->rings.n_rings);
	stats_count(o, "ring_requests", server->rings.n_asks);
	stats_count(o, "ring_bells", server->rings.n_bells);
	stats_count(o, "ring_wakes", server->rings.n_wakes);
#define COUNT(field) stats_count(o, #field, s.field)
	COUNT(budget_bytes);
	COUNT(compressed_bytes);
	COUNT(index_bytes);
	COUNT(decoded_bytes);
	COUNT(inflight_bytes);
	COUNT(retired_bytes);
	COUNT(leased_bytes);
	COUNT(orphaned_bytes);
	COUNT(peak_bytes);
	COUNT(n_models);
	COUNT(n_clients);
	COUNT(n_leases);
	COUNT(n_windows);
	COUNT(n_chunks);
	COUNT(decodes);
	COUNT(decoded_total_bytes);
	COUNT(window_hits);
	COUNT(window_joins);
	COUNT(window_misses);
	COUNT(evictions);
	COUNT(prefetches);
	COUNT(refused_budget);
	COUNT(refused_overdue);
	COUNT(corrupt_pages);
	COUNT(orphans_freed);
	COUNT(loaded_direct_bytes);
	COUNT(loaded_cached_bytes);
	COUNT(loaded_dropped_bytes);
	COUNT(n_numa_nodes);
	COUNT(n_workers);
#undef COUNT
	json_object_set_new(o, "huge_pages", json_boolean(s.huge_pages));
	json_object_set_new(o, "collapse_works", json_boolean(s.collapse_works));
	json_object_set_new(o, "exclusivity_works", json_boolean(s.exclusivity_works));
	json_object_set_new(o, "models", stats_models(server));
	return o;
}

static void stats_state(json_t *list, const char *what, const char *state, const char *detail)
{
	json_t *o = json_object();

	json_object_set_new(o, "what", json_string(what));
	json_object_set_new(o, "state", json_string(state));
	json_object_set_new(o, "detail", json_string(detail));
	json_array_append_new(list, o);
}

static void stats_cpu(json_t *list)
{
	static const char *const details[CPU_N_PATHS] = {
		[CPU_PORTABLE] = "portable C",
		[CPU_AVX2] = "AVX2 with BMI2",
		[CPU_AVX512] = "AVX-512 with VBMI2",
	};

	stats_state(list, "CPU", "yes", details[cpu_path()]);
}

static void stats_loading(json_t *list, const struct store_stats *s)
{
	char text[200];

	if (s->load_ring == 0)
		snprintf(text, sizeof(text), "io_uring");
	else if (s->load_ring > 0)
		snprintf(text, sizeof(text), "by decode threads: chosen by --io");
	else
		snprintf(text, sizeof(text), "by decode threads: io_uring cannot be used here: %s",
			 strerror(-s->load_ring));
	snprintf(text + strlen(text), sizeof(text) - strlen(text),
		 "; MiB read past the page cache %" PRIu64 ", from it %" PRIu64
		 ", through it and dropped %" PRIu64,
		 s->loaded_direct_bytes >> 20, s->loaded_cached_bytes >> 20,
		 s->loaded_dropped_bytes >> 20);
	stats_state(list, "loading", s->load_ring ? "no" : "yes", text);
}

json_t *stats_status(const struct server *server)
{
	struct store_stats s;
	struct utsname name;
	json_t *o = json_object(), *list = json_array();
	char text[400];
	bool uring = !strcmp(loop_name(server->loop), "io_uring");

	store_get_stats(server->store, &s);
	json_object_set_new(o, "ok", json_true());
	json_object_set_new(o, "status", list);
	stats_state(list, "io_uring", uring ? "yes" : "no", server->loop->detail);
	stats_loading(list, &s);
	stats_state(list, "huge pages", s.huge_pages && s.collapse_works ? "yes" : "no",
		    !s.huge_pages	 ? "off in the configuration"
		    : s.collapse_works ? "MADV_COLLAPSE works on shared memory"
				       : "MADV_COLLAPSE does not work here: pages of 4 KiB");
	/* The store does not start without them. */
	stats_state(list, "write seals", s.seals_work ? "yes" : "no",
		    s.seals_work ? "F_SEAL_WRITE and F_SEAL_FUTURE_WRITE keep others from writing"
				 : "models cannot be loaded: a seal that fails stops the load");
	stats_state(list, "exclusivity test", s.exclusivity_works ? "yes" : "no",
		    s.exclusivity_works
			    ? "F_SETLEASE tells when nobody else maps a chunk"
			    : "memory of clients that died holding it stays charged");
	snprintf(text, sizeof(text), "%u", s.n_numa_nodes);
	stats_state(list, "NUMA nodes", s.n_numa_nodes > 1 ? "yes" : "no", text);
	stats_cpu(list);
	snprintf(text, sizeof(text), "%u", s.n_workers);
	stats_state(list, "decode threads", "yes", text);
	if (uname(&name) == 0) {
		snprintf(text, sizeof(text), "%s %s %s", name.sysname, name.release, name.machine);
		stats_state(list, "kernel", "yes", text);
	}
	return o;
}
