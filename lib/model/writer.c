/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the layout of a container and the temporary file it grows in. What it is given is trusted
 * (safetensors.c and source.c checked it). The bytes depend on the calls alone: no time, no
 * address, no thread count. A segment is closed before a tensor once it has reached the target; a
 * tensor above the target has one of its own; so segments stay under CONTAINER_MAX_SEGMENTS.
 * One thread.
 */
#include "model/writer.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/hash.h"
#include "base/io.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"

#define BUFFER_BYTES   (1U << 20)	     /* one write at least this long: untuned */
#define SEGMENT_LEAST  (256ULL << 20)	     /* untuned */
#define SEGMENT_ROUND  (2ULL << 20)	     /* a huge page */
#define SEGMENTS_AIMED 100		     /* twice that, with large tensors, is still allowed */

struct array {
	void *data;
	size_t n, capacity;
};

struct writer {
	char *path, *temporary;
	int fd;
	uint8_t *buffer;
	size_t buffered;
	uint64_t offset; /* in the file, of what comes next */
	uint64_t target; /* bytes of a segment */
	uint64_t segment_offset;
	bool in_segment, in_raw;
	struct hash_stream *blob_hash;
	struct array strings, tensors, forms, pages, companions, files, segments, hints;
};

static void *array_at(const struct array *array, size_t i, size_t record_bytes)
{
	return (uint8_t *)array->data + i * record_bytes;
}

static int array_add(struct array *array, const void *records, size_t count, size_t record_bytes)
{
	int r = memory_grow(&array->data, &array->capacity, array->n, array->n + count,
			    record_bytes);

	if (r)
		return message_set(r, "not enough memory for the index");
	memcpy(array_at(array, array->n, record_bytes), records, count * record_bytes);
	array->n += count;
	return 0;
}

static int write_out(struct writer *writer, const void *data, size_t n_bytes, uint64_t offset)
{
	int r = io_write_at(writer->fd, data, n_bytes, offset);

	return r ? message_set(r, "%s: cannot write at byte %llu: %s", writer->temporary,
			       (unsigned long long)offset, strerror(-r)) :
		   0;
}

static int flush(struct writer *writer)
{
	int r = write_out(writer, writer->buffer, writer->buffered,
			  writer->offset - writer->buffered);

	writer->buffered = r ? writer->buffered : 0;
	return r;
}

static int append(struct writer *writer, const void *data, size_t n_bytes)
{
	int r;

	if (n_bytes > BUFFER_BYTES - writer->buffered) {
		r = flush(writer);
		if (r)
			return r;
	}
	if (n_bytes >= BUFFER_BYTES) {
		r = write_out(writer, data, n_bytes, writer->offset);
		if (r)
			return r;
	} else if (n_bytes) {
		memcpy(writer->buffer + writer->buffered, data, n_bytes);
		writer->buffered += n_bytes;
	}
	writer->offset += n_bytes;
	return 0;
}

static int pad(struct writer *writer, uint64_t alignment)
{
	static const uint8_t zeros[CONTAINER_ALIGN];

	return append(writer, zeros, align_up(writer->offset, alignment) - writer->offset);
}

int writer_new(struct writer **ret_writer, const char *path, uint64_t total_bytes)
{
	static const uint8_t zeros[sizeof(struct container_header)];
	struct writer *writer = memory_zalloc(sizeof(*writer));
	size_t n = strlen(path) + 32;
	int r = -ENOMEM;

	if (!writer)
		return message_set(-ENOMEM, "not enough memory");
	writer->fd = -1;
	writer->target = align_up(max_u64(SEGMENT_LEAST, total_bytes / SEGMENTS_AIMED),
				  SEGMENT_ROUND);
	writer->path = memory_strdup(path);
	writer->buffer = memory_alloc(BUFFER_BYTES);
	writer->blob_hash = hash_stream_new();
	writer->temporary = memory_alloc(n);
	if (!writer->path || !writer->buffer || !writer->blob_hash || !writer->temporary) {
		writer->temporary = memory_free(writer->temporary);
		message_set(r, "not enough memory");
		goto fail;
	}
	snprintf(writer->temporary, n, "%s.tmp-%ld", path, (long)getpid());
	writer->fd = open(writer->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	if (writer->fd < 0) {
		r = message_set(-errno, "%s: cannot create: %s", writer->temporary,
				strerror(errno));
		writer->temporary = memory_free(writer->temporary);
		goto fail;
	}
	r = append(writer, zeros, sizeof(zeros));
	if (r)
		goto fail;
	*ret_writer = writer;
	return 0;
fail:
	writer_free(writer);
	return r;
}

struct writer *writer_free(struct writer *writer)
{
	if (!writer)
		return NULL;
	if (writer->temporary)
		(void)unlink(writer->temporary);
	writer->fd = close_fd(writer->fd);
	writer->blob_hash = hash_stream_free(writer->blob_hash);
	memory_free(writer->strings.data);
	memory_free(writer->tensors.data);
	memory_free(writer->forms.data);
	memory_free(writer->pages.data);
	memory_free(writer->companions.data);
	memory_free(writer->files.data);
	memory_free(writer->segments.data);
	memory_free(writer->hints.data);
	memory_free(writer->buffer);
	memory_free(writer->temporary);
	memory_free(writer->path);
	return memory_free(writer);
}

static int add_string(struct writer *writer, const char *string, size_t n_bytes,
		      uint64_t *ret_offset)
{
	uint64_t offset = writer->strings.n;
	int r = array_add(&writer->strings, string, n_bytes, 1);

	if (!r)
		r = array_add(&writer->strings, "", 1, 1);
	if (!r)
		*ret_offset = offset;
	return r;
}

static int segment_end(struct writer *writer)
{
	struct container_segment segment = { .offset = writer->segment_offset };
	int r;

	if (!writer->in_segment)
		return 0;
	r = pad(writer, CONTAINER_ALIGN);
	if (r)
		return r;
	writer->in_segment = false;
	segment.n_bytes = writer->offset - segment.offset;
	return array_add(&writer->segments, &segment, 1, sizeof(segment));
}

/* Makes room for a tensor: goes on in this segment or begins the next. */
static int segment_place(struct writer *writer, uint64_t n_bytes)
{
	uint64_t used = writer->offset - writer->segment_offset;
	int r = 0;

	if (writer->in_segment && (used >= writer->target || n_bytes > writer->target))
		r = segment_end(writer);
	if (!r && !writer->in_segment) {
		r = pad(writer, CONTAINER_ALIGN);
		writer->segment_offset = writer->offset;
		writer->in_segment = true;
	}
	if (!r && writer->segments.n >= CONTAINER_MAX_SEGMENTS)
		r = message_set(-EFBIG, "%s: needs more than %d segments", writer->path,
				CONTAINER_MAX_SEGMENTS);
	return r;
}

static int add_tensor(struct writer *writer, const char *name, uint32_t name_bytes,
		      const struct container_tensor *record)
{
	struct container_tensor tensor = *record;
	int r = add_string(writer, name, name_bytes, &tensor.name_offset);

	tensor.name_bytes = name_bytes;
	tensor.n_forms = 0;
	tensor.first_form = writer->forms.n;
	return r ? r : array_add(&writer->tensors, &tensor, 1, sizeof(tensor));
}

static struct container_tensor *last_tensor(struct writer *writer)
{
	return array_at(&writer->tensors, writer->tensors.n - 1, sizeof(struct container_tensor));
}

int writer_tensor_begin(struct writer *writer, const char *name, uint32_t name_bytes,
			const struct container_tensor *record, bool raw)
{
	struct container_form form = {
		.page_record = writer->pages.n,
		.n_pages = div_up(record->n_bytes, record->page_bytes),
		.flags = raw ? CONTAINER_FORM_RAW : 0,
	};
	int r = add_tensor(writer, name, name_bytes, record);

	if (r || record->n_bytes == 0)
		return r;
	r = segment_place(writer, record->n_bytes);
	if (!r)
		r = pad(writer, raw && record->n_bytes >= CONTAINER_ALIGN ? CONTAINER_ALIGN :
									    CONTAINER_SMALL_ALIGN);
	if (r)
		return r;
	form.segment = (uint32_t)writer->segments.n;
	form.offset = writer->offset - writer->segment_offset;
	r = array_add(&writer->forms, &form, 1, sizeof(form));
	if (!r)
		last_tensor(writer)->n_forms = 1;
	return r;
}

int writer_page(struct writer *writer, const struct container_page *page, const void *stored)
{
	struct container_page record = *page;
	int r;

	record.offset = writer->offset - writer->segment_offset;
	r = append(writer, stored, page->stored_bytes);
	return r ? r : array_add(&writer->pages, &record, 1, sizeof(record));
}

int writer_tensor_end(struct writer *writer)
{
	struct container_tensor *tensor = last_tensor(writer);
	struct container_form *form;

	if (!tensor->n_forms)
		return 0;
	form = array_at(&writer->forms, tensor->first_form, sizeof(*form));
	assert(form->page_record + form->n_pages == writer->pages.n);
	form->stored_bytes = writer->offset - writer->segment_offset - form->offset;
	return tensor->n_bytes > writer->target ? segment_end(writer) : 0;
}

int writer_tensor_shared(struct writer *writer, const char *name, uint32_t name_bytes,
			 const struct container_tensor *record, uint64_t original)
{
	const struct container_tensor *first;
	struct container_tensor *tensor;
	int r = add_tensor(writer, name, name_bytes, record);

	if (r)
		return r;
	tensor = last_tensor(writer);
	first = array_at(&writer->tensors, original, sizeof(*first));
	assert(first->n_bytes == tensor->n_bytes && first->page_bytes == tensor->page_bytes);
	tensor->first_form = first->first_form;
	tensor->n_forms = first->n_forms;
	tensor->flags |= CONTAINER_TENSOR_SHARED;
	return 0;
}

int writer_companion(struct writer *writer, const struct container_companion *companion)
{
	struct container_tensor *tensor =
		array_at(&writer->tensors, companion->tensor, sizeof(*tensor));
	int r;

	if (tensor->n_companions == 0)
		tensor->first_companion = writer->companions.n;
	assert(tensor->first_companion + tensor->n_companions == writer->companions.n);
	r = array_add(&writer->companions, companion, 1, sizeof(*companion));
	tensor->n_companions += r == 0;
	return r;
}

int writer_hint(struct writer *writer, const struct container_hint *hint)
{
	return array_add(&writer->hints, hint, 1, sizeof(*hint));
}

int writer_file_begin(struct writer *writer, const char *name, uint32_t kind)
{
	struct container_file file = { .kind = kind, .name_bytes = (uint32_t)strlen(name) };
	int r = segment_end(writer);

	if (!r)
		r = pad(writer, 8);
	if (!r)
		r = add_string(writer, name, file.name_bytes, &file.name_offset);
	file.blob_offset = writer->offset;
	hash_stream_reset(writer->blob_hash);
	return r ? r : array_add(&writer->files, &file, 1, sizeof(file));
}

static struct container_file *last_file(struct writer *writer)
{
	return array_at(&writer->files, writer->files.n - 1, sizeof(struct container_file));
}

int writer_file_data(struct writer *writer, const void *data, size_t n_bytes)
{
	hash_stream_update(writer->blob_hash, data, n_bytes);
	return append(writer, data, n_bytes);
}

int writer_file_end(struct writer *writer, uint64_t file_bytes, const uint8_t file_hash[16])
{
	struct container_file *file = last_file(writer);

	file->blob_bytes = writer->offset - file->blob_offset;
	file->blob_hash = hash_stream_64(writer->blob_hash);
	file->file_bytes = file_bytes;
	memcpy(file->file_hash, file_hash, 16);
	return 0;
}

static void store_le(uint8_t *bytes, uint64_t value, unsigned n_bytes)
{
	for (unsigned i = 0; i < n_bytes; i++)
		bytes[i] = (uint8_t)(value >> (8 * i));
}

/* docs/container.md defines both hashes. */
static void hash_source(struct writer *writer, const char *options, uint8_t ret_source[16],
			uint8_t ret_fingerprint[16])
{
	uint8_t number[8];

	hash_stream_reset(writer->blob_hash);
	for (size_t i = 0; i < writer->files.n; i++) {
		const struct container_file *file = array_at(&writer->files, i, sizeof(*file));

		store_le(number, file->name_bytes, 4);
		hash_stream_update(writer->blob_hash, number, 4);
		hash_stream_update(writer->blob_hash,
				   array_at(&writer->strings, file->name_offset, 1),
				   file->name_bytes);
		store_le(number, file->file_bytes, 8);
		hash_stream_update(writer->blob_hash, number, 8);
		hash_stream_update(writer->blob_hash, file->file_hash, 16);
	}
	hash_stream_128(writer->blob_hash, ret_source);
	hash_stream_reset(writer->blob_hash);
	hash_stream_update(writer->blob_hash, ret_source, 16);
	store_le(number, CONTAINER_VERSION, 4);
	hash_stream_update(writer->blob_hash, number, 4);
	hash_stream_update(writer->blob_hash, options, strlen(options));
	hash_stream_128(writer->blob_hash, ret_fingerprint);
}

/* Open addressing, at most half full, UINT32_MAX where empty. */
static int make_names(const struct writer *writer, uint64_t seed, struct array *names)
{
	uint64_t n = 2;
	uint32_t *slots;

	if (writer->tensors.n >= UINT32_MAX)
		return message_set(-EFBIG, "%s: has more than 2^32 tensors", writer->path);
	while (n < 2 * (uint64_t)writer->tensors.n)
		n *= 2;
	slots = memory_array(n, sizeof(*slots));
	if (!slots)
		return message_set(-ENOMEM, "not enough memory for the index");
	memset(slots, 0xff, n * sizeof(*slots));
	for (uint32_t id = 0; id < writer->tensors.n; id++) {
		const struct container_tensor *tensor =
			array_at(&writer->tensors, id, sizeof(*tensor));
		uint64_t at = hash_64_seeded(array_at(&writer->strings, tensor->name_offset, 1),
					     tensor->name_bytes, seed);

		for (at &= n - 1; slots[at] != UINT32_MAX; at = (at + 1) & (n - 1))
			;
		slots[at] = id;
	}
	*names = (struct array){ .data = slots, .n = n };
	return 0;
}

static int make_index(const struct writer *writer, const char *options, const uint8_t source[16],
		      const uint8_t fingerprint[16], struct array *ret_index)
{
	_cleanup_(cleanup_memory) void *name_slots = NULL;
	struct array names = { 0 };
	struct array text = { .data = (void *)(uintptr_t)options, .n = strlen(options) };
	struct container_index head = { .magic = CONTAINER_INDEX_MAGIC,
					.version = CONTAINER_VERSION,
					.n_tables = CONTAINER_N_TABLES,
					.index_bytes = sizeof(head) };
	const struct {
		const struct array *array;
		size_t record_bytes;
	} tables[] = {
		[CONTAINER_TABLE_STRINGS] = { &writer->strings, 1 },
		[CONTAINER_TABLE_TENSORS] = { &writer->tensors, sizeof(struct container_tensor) },
		[CONTAINER_TABLE_NAMES] = { &names, sizeof(uint32_t) },
		[CONTAINER_TABLE_FORMS] = { &writer->forms, sizeof(struct container_form) },
		[CONTAINER_TABLE_PAGES] = { &writer->pages, sizeof(struct container_page) },
		[CONTAINER_TABLE_COMPANIONS] = { &writer->companions,
						 sizeof(struct container_companion) },
		[CONTAINER_TABLE_FILES] = { &writer->files, sizeof(struct container_file) },
		[CONTAINER_TABLE_SEGMENTS] = { &writer->segments,
					       sizeof(struct container_segment) },
		[CONTAINER_TABLE_OPTIONS] = { &text, 1 },
		[CONTAINER_TABLE_HINTS] = { &writer->hints, sizeof(struct container_hint) },
	};
	const size_t n_tables = sizeof(tables) / sizeof(tables[0]);
	uint8_t *index;
	int r;

	memcpy(head.source_hash, source, 16);
	memcpy(head.fingerprint, fingerprint, 16);
	/* From the source, so that no list of names can be made to collide beforehand. */
	memcpy(&head.name_seed, source, sizeof(head.name_seed));
	r = make_names(writer, head.name_seed, &names);
	if (r)
		return r;
	name_slots = names.data;
	for (size_t i = 0; i < n_tables; i++) {
		/* As readers from before there were hints would have it. */
		if (i == CONTAINER_TABLE_HINTS && !writer->hints.n)
			continue;
		head.index_bytes = align_up(head.index_bytes, 64);
		head.tables[i].offset = head.index_bytes;
		head.tables[i].count = tables[i].array->n;
		head.index_bytes += tables[i].array->n * tables[i].record_bytes;
	}
	head.index_bytes = align_up(head.index_bytes, 64);
	index = memory_zalloc(head.index_bytes);
	if (!index)
		return message_set(-ENOMEM, "not enough memory for the index");
	memcpy(index, &head, sizeof(head));
	for (size_t i = 0; i < n_tables; i++)
		if (tables[i].array->n)
			memcpy(index + head.tables[i].offset, tables[i].array->data,
			       tables[i].array->n * tables[i].record_bytes);
	*ret_index = (struct array){ .data = index, .n = head.index_bytes };
	return 0;
}

static int write_index(struct writer *writer, const char *options)
{
	struct container_header header = { .magic = CONTAINER_MAGIC,
					   .version = CONTAINER_VERSION,
					   .header_bytes = sizeof(header),
					   .compat = writer->hints.n ? CONTAINER_COMPAT_HINTS : 0 };
	struct array index = { 0 };
	int r;

	hash_source(writer, options, header.source_hash, header.fingerprint);
	r = make_index(writer, options, header.source_hash, header.fingerprint, &index);
	if (!r)
		r = pad(writer, CONTAINER_ALIGN);
	header.index_offset = writer->offset;
	header.index_bytes = index.n;
	if (!r) {
		header.index_hash = hash_64(index.data, index.n);
		r = append(writer, index.data, index.n);
	}
	memory_free(index.data);
	if (!r)
		r = flush(writer);
	header.file_bytes = writer->offset;
	header.header_hash = hash_64(&header, offsetof(struct container_header, header_hash));
	/* Last: until here the file starts with zeros and is no container. */
	return r ? r : write_out(writer, &header, sizeof(header), 0);
}

/* The rename is durable once its directory is. */
static int sync_directory(const char *path)
{
	_cleanup_(cleanup_memory) char *directory = memory_strdup(path);
	_cleanup_(cleanup_fd) int fd = -1;
	char *slash = directory ? strrchr(directory, '/') : NULL;

	if (!directory)
		return message_set(-ENOMEM, "not enough memory");
	if (slash)
		slash[slash == directory] = '\0';
	fd = open(slash ? directory : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	/* Some file systems cannot sync directories and say EINVAL: nothing is left to do there. */
	if (fd < 0 || (fsync(fd) < 0 && errno != EINVAL))
		return message_set(-errno, "%s: cannot sync its directory: %s", path,
				   strerror(errno));
	return 0;
}

int writer_commit(struct writer *writer, const char *options)
{
	int r = segment_end(writer);

	if (!r)
		r = write_index(writer, options);
	if (r)
		return r;
	if (fsync(writer->fd) < 0)
		return message_set(-errno, "%s: cannot sync: %s", writer->temporary,
				   strerror(errno));
	if (rename(writer->temporary, writer->path) < 0)
		return message_set(-errno, "%s: cannot rename the finished file to it: %s",
				   writer->path, strerror(errno));
	writer->temporary = memory_free(writer->temporary);
	return sync_directory(writer->path);
}
