/* SPDX-License-Identifier: Apache-2.0 */
/* One segment, one form a tensor, everything in memory: for tests, where size does not matter. */
#include "make-container.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/hash.h"
#include "base/io.h"
#include "base/range.h"
#include "codec/codec.h"


struct maker {
	uint8_t *file; /* grows; zeroed */
	size_t n_bytes, capacity;
};

static void *maker_room(struct maker *m, size_t n_bytes, size_t align)
{
	size_t at = align_up(m->n_bytes, align);

	if (at + n_bytes > m->capacity) {
		m->capacity = 2 * (at + n_bytes);
		m->file = realloc(m->file, m->capacity);
	}
	if (!m->file)
		abort();
	memset(m->file + m->n_bytes, 0, at + n_bytes - m->n_bytes);
	m->n_bytes = at + n_bytes;
	return m->file + at;
}

static void maker_pages(struct maker *m, const struct make_tensor *t, struct container_form *form,
			struct container_page *pages, uint64_t first)
{
	struct codec_context *codec = t->codec == CODEC_RAW ? NULL : codec_context_new_encoder();
	uint8_t *buffer = malloc(t->page_bytes + 1);
	uint64_t segment = sizeof(struct container_header);

	(void)maker_room(m, 0, t->n_bytes < 4096 ? 64 : 4096);
	*form = (struct container_form){.page_record = first,
					.offset = m->n_bytes - segment,
					.flags = CONTAINER_FORM_RAW};
	for (uint64_t at = 0; at < t->n_bytes; at += t->page_bytes) {
		const uint8_t *page = (const uint8_t *)t->bytes + at;
		uint64_t size = min_u64(t->page_bytes, t->n_bytes - at);
		struct container_page *record = &pages[first + form->n_pages++];
		size_t stored = size;
		uint8_t id = t->codec;

		if (id == CODEC_RAW ||
		    codec_encode(codec, id, 3, page, size, buffer, size, &stored) != 0) {
			id = CODEC_RAW;
			stored = size;
			memcpy(buffer, page, size);
		} else {
			form->flags = 0;
		}
		record->offset = m->n_bytes - segment;
		record->stored_bytes = (uint32_t)stored;
		record->codec = id;
		record->stored_hash = hash_64(buffer, stored);
		record->decoded_hash = hash_64(page, size);
		memcpy(maker_room(m, stored, 1), buffer, stored);
	}
	form->stored_bytes = m->n_bytes - segment - form->offset;
	free(buffer);
	codec_context_free(codec);
}

static void maker_table(struct maker *m, unsigned table, size_t start, const void *records,
			uint64_t count, size_t record_bytes)
{
	struct container_index *head;
	uint8_t *to = maker_room(m, count * record_bytes, 64);

	if (count)
		memcpy(to, records, count * record_bytes);
	head = (struct container_index *)(m->file + start);
	head->tables[table] = (struct container_table){(uint64_t)(to - m->file) - start, count};
}

int make_container(const char *path, const struct make_tensor *tensors, unsigned n_tensors,
		   const struct container_companion *companions, unsigned n_companions,
		   const char *config)
{
	return make_container_hints(path, tensors, n_tensors, companions, n_companions, config, NULL, 0);
}

int make_container_hints(const char *path, const struct make_tensor *tensors, unsigned n_tensors,
			 const struct container_companion *companions, unsigned n_companions,
			 const char *config, const struct container_hint *hints, unsigned n_hints)
{
	struct maker m = {0};
	struct container_tensor *records = calloc(n_tensors, sizeof(*records));
	struct container_form *forms = calloc(n_tensors, sizeof(*forms));
	struct container_page *pages;
	struct container_file file = {.kind = CONTAINER_FILE_VERBATIM, .name_bytes = 11};
	struct container_segment segment = {.offset = sizeof(struct container_header)};
	uint64_t n_strings = 12, n_pages = 0, n_slots = 16;
	uint32_t *slots;
	char *strings;
	struct container_header *header;
	struct container_index *head;
	size_t start;
	int fd, r;

	for (unsigned i = 0; i < n_tensors; i++) {
		n_strings += strlen(tensors[i].name) + 1;
		n_pages += tensors[i].n_bytes / tensors[i].page_bytes + 1;
		n_slots *= n_slots < 2 * (uint64_t)n_tensors ? 2 : 1;
	}
	pages = calloc(n_pages, sizeof(*pages));
	slots = malloc(n_slots * sizeof(*slots));
	strings = calloc(n_strings, 1);
	memset(slots, 0xff, n_slots * sizeof(*slots));
	memcpy(strings, "config.json", 12);
	n_strings = 12;
	n_pages = 0;
	(void)maker_room(&m, sizeof(*header), 1);
	for (unsigned i = 0; i < n_tensors; i++) {
		const struct make_tensor *t = &tensors[i];
		uint64_t slot = hash_64_seeded(t->name, strlen(t->name), 5) % n_slots;

		records[i] = (struct container_tensor){.name_offset = n_strings,
						       .name_bytes = (uint32_t)strlen(t->name),
						       .dtype = t->dtype,
						       .n_dims = t->n_dims,
						       .n_bytes = t->n_bytes,
						       .page_bytes = t->page_bytes,
						       .n_forms = 1,
						       .first_form = i,
						       .first_companion = t->first_companion,
						       .n_companions = t->n_companions};
		memcpy(records[i].dims, t->dims, sizeof(t->dims));
		memcpy(strings + n_strings, t->name, strlen(t->name));
		n_strings += strlen(t->name) + 1;
		while (slots[slot] != UINT32_MAX)
			slot = (slot + 1) % n_slots;
		slots[slot] = i;
		maker_pages(&m, t, &forms[i], pages, n_pages);
		n_pages += forms[i].n_pages;
	}
	(void)maker_room(&m, 0, 4096);
	segment.n_bytes = m.n_bytes - segment.offset;
	file.blob_offset = m.n_bytes;
	file.blob_bytes = file.file_bytes = strlen(config);
	file.blob_hash = hash_64(config, strlen(config));
	hash_128(config, strlen(config), file.file_hash);
	memcpy(maker_room(&m, strlen(config), 1), config, strlen(config));
	(void)maker_room(&m, 0, 4096);
	start = m.n_bytes;
	(void)maker_room(&m, sizeof(*head), 1);
	maker_table(&m, CONTAINER_TABLE_STRINGS, start, strings, n_strings, 1);
	maker_table(&m, CONTAINER_TABLE_TENSORS, start, records, n_tensors, sizeof(*records));
	maker_table(&m, CONTAINER_TABLE_NAMES, start, slots, n_slots, sizeof(*slots));
	maker_table(&m, CONTAINER_TABLE_FORMS, start, forms, n_tensors, sizeof(*forms));
	maker_table(&m, CONTAINER_TABLE_PAGES, start, pages, n_pages, sizeof(*pages));
	maker_table(&m, CONTAINER_TABLE_COMPANIONS, start, companions, n_companions,
		    sizeof(*companions));
	maker_table(&m, CONTAINER_TABLE_FILES, start, &file, 1, sizeof(file));
	maker_table(&m, CONTAINER_TABLE_SEGMENTS, start, &segment, 1, sizeof(segment));
	maker_table(&m, CONTAINER_TABLE_OPTIONS, start, "", 0, 1);
	if (n_hints)
		maker_table(&m, CONTAINER_TABLE_HINTS, start, hints, n_hints, sizeof(*hints));
	head = (struct container_index *)(m.file + start);
	head->magic = CONTAINER_INDEX_MAGIC;
	head->version = CONTAINER_VERSION;
	head->n_tables = CONTAINER_N_TABLES;
	head->index_bytes = m.n_bytes - start;
	head->name_seed = 5;
	hash_128(pages, n_pages * sizeof(*pages), head->fingerprint);
	header = (struct container_header *)m.file;
	memcpy(header->magic, CONTAINER_MAGIC, 8);
	header->version = CONTAINER_VERSION;
	header->header_bytes = sizeof(*header);
	header->compat = n_hints ? CONTAINER_COMPAT_HINTS : 0;
	header->file_bytes = m.n_bytes;
	header->index_offset = start;
	header->index_bytes = m.n_bytes - start;
	header->index_hash = hash_64(m.file + start, m.n_bytes - start);
	memcpy(header->fingerprint, head->fingerprint, 16);
	header->header_hash = hash_64(header, offsetof(struct container_header, header_hash));
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	r = fd < 0 ? -errno : io_write_at(fd, m.file, m.n_bytes, 0);
	close_fd(fd);
	free(m.file);
	free(records);
	free(forms);
	free(pages);
	free(slots);
	free(strings);
	return r;
}
