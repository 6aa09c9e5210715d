/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segments of stored forms, as a daemon hands them out. Owns their mappings. The daemon may put a
 * tensor elsewhere at any time and retire the old segment: its mapping goes as soon as no read and
 * no view needs it. Tables are under model->lock; nothing is unmapped with the lock held.
 */
#include "served.h"

#include <errno.h>

#include "proto/shared.h"

static bool segment_is_over(const struct served *served, const struct served_segment *segment)
{
	const struct served_placement *p = served_placement(served);

	return served->retired || segment->session != p->session ||
	       shared_load_acquire(&p->segments[segment->slot]) != segment->generation;
}

static void segment_free(struct served_segment *segment)
{
	served_unmap(&segment->map);
	memory_free(segment);
}

static void segment_unlink(struct served *served, struct served_segment *segment)
{
	struct served_segment **link = &served->segments;

	while (*link != segment)
		link = &(*link)->next;
	*link = segment->next;
	if (served->slots[segment->slot] == segment)
		served->slots[segment->slot] = NULL;
}

void segment_obey(struct dcmem *model)
{
	struct served *served = model->served;
	struct served_segment *segment, *next, *over = NULL;
	struct served_placement *p = served_placement(served);
	/* Read before the words: a retirement in between is seen again at the next call. */
	uint32_t epoch = shared_load_acquire(&p->header->segment_epoch);

	pthread_mutex_lock(&model->lock);
	for (segment = served->segments; segment; segment = next) {
		next = segment->next;
		if (segment->n_users || !segment_is_over(served, segment))
			continue;
		segment_unlink(served, segment);
		segment->next = over;
		over = segment;
	}
	served->seen_segment_epoch = epoch;
	pthread_mutex_unlock(&model->lock);
	for (; over; over = next) {
		next = over->next;
		segment_free(over);
	}
}

void segment_free_all(struct served *served)
{
	struct served_segment *segment;

	while ((segment = served->segments)) {
		served->segments = segment->next;
		segment_free(segment);
	}
	served->slots = memory_free(served->slots);
}

void segment_leave(struct dcmem *model, struct served_segment *segment)
{
	bool over;

	pthread_mutex_lock(&model->lock);
	over = --segment->n_users == 0 && segment_is_over(model->served, segment);
	if (over)
		segment_unlink(model->served, segment);
	pthread_mutex_unlock(&model->lock);
	if (over)
		segment_free(segment);
}

/* With model->lock held. NULL: not mapped. */
static struct served_segment *segment_find(struct served *served, uint64_t session, uint32_t slot,
					   uint32_t generation)
{
	struct served_segment *segment = served->slots[slot];

	if (!segment || segment->session != session || segment->generation != generation)
		return NULL;
	segment->n_users++;
	return segment;
}

static int segment_fetch(struct dcmem *model, uint64_t session, uint32_t slot, uint32_t generation,
			 struct served_segment **ret_segment)
{
	struct wire_segment body = {.id = slot};
	struct served_segment *segment;
	struct transport_reply reply;
	uint64_t answered, id;
	int r;

	r = served_call(model, 0, WIRE_SEGMENT, &body, sizeof(body), &reply, &answered, &id);
	if (r == DCMEM_E_INVALID) /* retired since its record was read */
		return -ESTALE;
	if (r != 0)
		return r;
	segment = memory_zalloc(sizeof(*segment));
	if (!segment)
		r = -ENOMEM;
	else if (reply.message.segment_reply.id != slot)
		r = message_set(DCMEM_E_PROTOCOL, "the daemon sent another segment");
	else if (answered != session || reply.message.segment_reply.generation != generation)
		r = -ESTALE;
	else
		r = served_map_fd(reply.fds[0], reply.message.segment_reply.n_bytes, &segment->map);
	transport_reply_close(&reply);
	if (r != 0) {
		memory_free(segment);
		return r;
	}
	segment->session = session;
	segment->slot = slot;
	segment->generation = generation;
	segment->n_users = 1;
	*ret_segment = segment;
	return 0;
}

int segment_use(struct dcmem *model, uint64_t session, uint32_t slot, uint32_t generation,
		struct served_segment **ret_segment)
{
	struct served *served = model->served;
	struct served_segment *segment, *fresh;
	int r;

	pthread_mutex_lock(&model->lock);
	segment = segment_find(served, session, slot, generation);
	pthread_mutex_unlock(&model->lock);
	if (segment) {
		*ret_segment = segment;
		return 0;
	}
	r = segment_fetch(model, session, slot, generation, &fresh);
	if (r != 0)
		return r;
	pthread_mutex_lock(&model->lock);
	segment = segment_find(served, session, slot, generation);
	if (!segment) {
		segment = TAKE(fresh);
		segment->next = served->segments;
		served->segments = segment;
		served->slots[slot] = segment; /* an older one there is over: see segment_obey() */
	}
	pthread_mutex_unlock(&model->lock);
	if (fresh) /* another thread was faster */
		segment_free(fresh);
	*ret_segment = segment;
	return 0;
}
