/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rates: how fast, in what order and by how many the tensors of a model are read. Clients count what
 * they take in their shared tables (include/dcmem/shm.h); nothing there is believed beyond what memory
 * could have delivered. Owns nothing. Loop thread.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/range.h"
#include "tuner.h"

#define DECAY_S 2.0	   /* of rates: a new load is most of the rate after 5 s; untuned */
#define CLIENT_MOST 200e9  /* bytes a second that one client could take: more is a lie */

static struct model *model_of(const struct store *store, uint64_t id)
{
	struct model *model;

	TAILQ_FOREACH(model, &store->models, link)
		if (model->id == id && model->tuned && !model->retired)
			return model;
	return NULL;
}

static void look_at(struct store_client *client, struct tuned_model *tuned, uint64_t n_tensors,
		    double seconds)
{
	double most = CLIENT_MOST * seconds, sum = 0;
	uint64_t n = min_u64(client->n_counters, n_tensors);

	for (uint64_t t = 0; t < n; t++) {
		uint64_t value = __atomic_load_n(&client->counters[t], __ATOMIC_RELAXED);
		uint64_t taken = value - client->seen[t];

		client->seen[t] = value;
		if (!taken || sum + (double)taken > most)
			continue;
		sum += (double)taken;
		if (tuned->of[t] != UINT32_MAX)
			tuned->tensors[tuned->of[t]].taken += taken;
	}
	tuned->taken += (uint64_t)sum;
	tuned->readers += sum > 0;
}

static void look_at_local(struct store_client *client, struct tuned_model *tuned, double *waited)
{
	struct shm_leases_header *header = client->shared.data;
	uint64_t local = __atomic_load_n(&header->local_bytes, __ATOMIC_RELAXED);
	uint64_t ns = __atomic_load_n(&header->waited_ns, __ATOMIC_RELAXED);

	tuned->local_taken += local - client->seen_local;
	*waited += (double)(ns - client->seen_waited) * 1e-9;
	client->seen_local = local;
	client->seen_waited = ns;
}

static double blend(double old, double now, double keep)
{
	return keep * old + (1 - keep) * now;
}

static void decay(struct model *model, double seconds, double readers)
{
	struct tuned_model *tuned = model->tuned;
	double keep = exp(-seconds / DECAY_S), taken = (double)tuned->taken;
	double decoded = (double)(model->decoded_bytes - tuned->seen_decoded);
	double acquired = (double)(model->n_acquired - tuned->seen_acquired);
	double in_order = (double)(model->n_in_order - tuned->seen_in_order);
	double share = decoded > 0 ? taken / decoded : readers;

	for (uint32_t i = 0; i < tuned->n_tensors; i++) {
		struct tuned_tensor *tensor = &tuned->tensors[i];

		tensor->rate = blend(tensor->rate, (double)tensor->taken / seconds, keep);
		if (tensor->rate < 1)
			tensor->rate = 0;
		tensor->taken = 0;
	}
	if (taken > 0) {
		/* Kept windows are no sharing: at most those who read have one decode in common. */
		share = fmin(fmax(share, 1), fmax(readers, 1));
		tuned->share = blend(tuned->share, share, keep);
		tuned->local = blend(tuned->local, fmin(1, (double)tuned->local_taken / taken), keep);
	}
	if (acquired >= 8)
		tuned->order = blend(tuned->order, in_order / acquired, keep);
	tuned->readers = readers;
	tuned->seen_decoded = model->decoded_bytes;
	tuned->seen_acquired = model->n_acquired;
	tuned->seen_in_order = model->n_in_order;
	tuned->taken = tuned->local_taken = 0;
}

void rates_update(struct store *store, double seconds, double *ret_waited)
{
	struct store_client *client;
	struct model *model;
	double waited = 0;

	TAILQ_FOREACH(model, &store->models, link)
		if (model->tuned)
			model->tuned->readers = 0;
	TAILQ_FOREACH(client, &store->clients, link) {
		model = client->counters ? model_of(store, client->counted) : NULL;
		if (!model)
			continue;
		if (!client->seen) {
			client->seen = memory_array(client->n_counters, sizeof(*client->seen));
			if (!client->seen)
				continue;
		}
		look_at(client, model->tuned, model->loaded.catalog.n_tensors, seconds);
		look_at_local(client, model->tuned, &waited);
	}
	TAILQ_FOREACH(model, &store->models, link)
		if (model->tuned)
			decay(model, seconds, model->tuned->readers);
	*ret_waited = waited / seconds;
}

/* Ticks of all processors of the host, busy and in all. False: not to be known here. */
static bool read_ticks(uint64_t *ret_busy, uint64_t *ret_all)
{
	unsigned long long ticks[8] = {0};
	FILE *file = fopen("/proc/stat", "re");
	uint64_t all = 0;
	int n;

	if (!file)
		return false;
	n = fscanf(file, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &ticks[0], &ticks[1],
		   &ticks[2], &ticks[3], &ticks[4], &ticks[5], &ticks[6], &ticks[7]);
	fclose(file);
	for (unsigned i = 0; i < 8; i++)
		all += ticks[i];
	*ret_all = all;
	*ret_busy = all - ticks[3] - ticks[4]; /* idle, waiting for I/O */
	return n >= 5;
}

double rates_cores(struct store *store, double seconds)
{
	double n_cpus = (double)sysconf(_SC_NPROCESSORS_ONLN), idle = n_cpus;
	uint64_t busy, all, decoding = 0;

	if (read_ticks(&busy, &all)) {
		if (store->seen_cores.all && all > store->seen_cores.all)
			idle = n_cpus * (1 - (double)(busy - store->seen_cores.busy) /
						     (double)(all - store->seen_cores.all));
		store->seen_cores.busy = busy;
		store->seen_cores.all = all;
	}
	for (unsigned i = 0; i < POOL_N_PRIORITIES; i++)
		decoding += pool_busy_ns(store->decoders, i);
	idle += (double)(decoding - store->seen_cores.decoding_ns) * 1e-9 / seconds;
	store->seen_cores.decoding_ns = decoding;
	return fmin(fmax(idle, 0.05 * n_cpus), (double)store->config.n_workers);
}
